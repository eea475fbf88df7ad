"""AutoRound's format, which transformers and vLLM load: integers in GPTQ's packing."""

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
    """Return the integers that hold a layer's format, or why there are none."""
    from bitplan.runtimes.auto_round.schemes import layer_verdict

    return layer_verdict(layer, made, info)


def write(job: ExportJob) -> Mapping[str, Any]:
    """Write the folder of a job, print what it holds of the plan, and return its report."""
    from bitplan.runtimes.auto_round.write import write as write_folder

    return write_folder(job)


def how_to_run(artifact: Path, name: str) -> str:
    """Return the commands that run a folder, in float16 as its scales are."""
    return "\n".join(
        [
            f"Run it with vLLM:       vllm serve {artifact} --served-model-name {name} --dtype float16",
            f"with transformers:      AutoModelForCausalLM.from_pretrained({str(artifact)!r}, dtype='float16')",
            "                        (pip install auto-round)",
        ]
    )


def score(artifact: Path, reference: "Reference", threads: int) -> "TokenScores":
    """Return the scores of the folder in auto-round's torch backend, float16."""
    from bitplan.runtimes.auto_round.scores import score_folder

    return score_folder(artifact, reference, threads)


def bytes_besides(checkpoint: "Checkpoint", info: "ModelInfo", layers: Collection[str], base: Path | None) -> int:
    """Return the most bytes of a folder besides some layers."""
    from bitplan.runtimes.packed.size import bytes_besides as besides

    return besides(checkpoint, layers)


RUNTIME = Runtime(
    "auto_round",
    "model",
    verdict,
    write,
    how_to_run,
    score,
    bytes_besides=bytes_besides,
    environment="torch",
    settings=("fusion",),
    is_folder=True,
    fuses="all",
    whole_model=True,
    score_packages=("auto_round",),
    code={
        "write": "bitplan.runtimes.auto_round.write",
        "score": "bitplan.runtimes.auto_round.scores",
        "size": "bitplan.runtimes.packed.size",
        "verdict": "bitplan.runtimes.auto_round.schemes",
    },
)
