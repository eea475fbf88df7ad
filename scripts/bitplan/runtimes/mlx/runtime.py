"""MLX: a plan as a folder that mlx-lm loads on Apple silicon."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitplan.runtimes.runtime import ExportJob, Runtime, Verdict

if TYPE_CHECKING:
    from bitplan.evaluate.scores import TokenScores
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.models.layers import Layer, ModelInfo
    from bitplan.plans.plan import LayerPlan
    from bitplan.reference.reference import Reference


def verdict(layer: "Layer", made: "LayerPlan", info: "ModelInfo") -> Verdict:
    """Return the mode that holds a layer's format, or why there is none."""
    from bitplan.runtimes.mlx.schemes import layer_verdict

    return layer_verdict(layer, made, info)


def write(job: ExportJob) -> Mapping[str, Any]:
    """Write the folder of a job, print what it holds of the plan, and return its report."""
    from bitplan.runtimes.mlx.write import write as write_folder

    return write_folder(job)


def how_to_run(artifact: Path, name: str) -> str:
    """Return the commands that run a folder with mlx-lm."""
    return "\n".join(
        [
            f"Run it with mlx-lm:     mlx_lm.generate --model {artifact} --prompt 'Once upon a time'",
            f"as a server:            mlx_lm.server --model {artifact} --port 8080",
            "install:                pip install mlx-lm (on Linux: pip install 'mlx-lm[cpu]')",
        ]
    )


def score(artifact: Path, reference: "Reference", threads: int) -> "TokenScores":
    """Return the scores of the folder in mlx-lm on this machine's processor."""
    from bitplan.runtimes.mlx.scores import score_folder

    return score_folder(artifact, reference, threads)


def bytes_besides(checkpoint: "Checkpoint", info: "ModelInfo", layers: Collection[str], base: Path | None) -> int:
    """Return the most bytes of a folder besides some layers."""
    from bitplan.runtimes.packed.size import bytes_besides as besides

    return besides(checkpoint, layers)


RUNTIME = Runtime(
    "mlx",
    "model",
    verdict,
    write,
    how_to_run,
    score,
    bytes_besides=bytes_besides,
    environment="torch",
    settings=("fusion",),
    is_folder=True,
    fuses="experts",
    whole_model=True,
    score_packages=("mlx", "mlx_lm"),
    code={
        "write": "bitplan.runtimes.mlx.write",
        "score": "bitplan.runtimes.mlx.scores",
        "size": "bitplan.runtimes.packed.size",
        "verdict": "bitplan.runtimes.mlx.schemes",
    },
)
