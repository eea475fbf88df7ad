"""llama.cpp and what is built on it: a plan as one GGUF file."""

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitplan.runtimes.runtime import ExportJob, Runtime, Verdict

if TYPE_CHECKING:
    from bitplan.evaluate.scores import TokenScores
    from bitplan.evaluate.timing import Run, SpeedSettings
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.models.layers import Layer, ModelInfo
    from bitplan.plans.plan import LayerPlan
    from bitplan.reference.reference import Reference


def verdict(layer: "Layer", made: "LayerPlan", info: "ModelInfo") -> Verdict:
    """Return the type of the table for a layer's format, or llama.cpp's substitute where rows do not fit its blocks."""
    from bitplan.runtimes.gguf.verdicts import layer_verdict

    return layer_verdict(layer, made)


def write(job: ExportJob) -> Mapping[str, Any]:
    """Write the GGUF of a job, print what it holds of the plan, and return its report."""
    from bitplan.runtimes.gguf.write import write_job

    return write_job(job)


def why_unsupported(config: Mapping[str, Any]) -> str:
    """Return why a model with this config.json has no GGUF; "" where it may have one."""
    from bitplan.runtimes.gguf.architectures import why_unsupported as of_converter

    return of_converter(config)


def how_to_run(artifact: Path, name: str) -> str:
    """Return the commands that serve a GGUF file in the programs that read it; one writes the Modelfile for Ollama where none is there."""
    from bitplan.runtimes.gguf.type_lines import beside

    file, modelfile = shlex.quote(str(artifact)), beside(artifact, "Modelfile")
    written = "" if modelfile.exists() else f"echo 'FROM ./{artifact.name}' > {shlex.quote(str(modelfile))} && "
    return (
        f"Run it with llama.cpp:  llama-server -m {file}\n"
        f"with Ollama:            {written}ollama create {name} -f {shlex.quote(str(modelfile))} && ollama run {name}\n"
        f"with LM Studio:         copy it to ~/.lmstudio/models/bitplan/{name}/{name}.gguf"
    )


def score(artifact: Path, reference: "Reference", threads: int) -> "TokenScores":
    """Return the scores of a GGUF file in llama.cpp. Raises `UserError` for a file of another model."""
    from bitplan.runtimes.gguf.scores import score_gguf

    return score_gguf(artifact, reference, threads)


def time(artifact: Path, settings: "SpeedSettings") -> "Run":
    """Return the times of one run of a GGUF file in llama.cpp."""
    from bitplan.runtimes.gguf.timing import run_once

    return run_once(artifact, settings)


def bytes_besides(checkpoint: "Checkpoint", info: "ModelInfo", layers: Collection[str], base: Path | None) -> int:
    """Return the most bytes of a file besides some layers, exactly known from the full-precision file. Raises `UserError` without one."""
    from bitplan.core.errors import user_error
    from bitplan.runtimes.gguf.size import bytes_besides as besides

    if base is None:
        what = "is required for a limit on a GGUF's size"
        raise user_error("OPTIMAL-BAD-FLAGS", "--base", what, "Make it with scripts/convert_gguf.py")
    return besides(info, layers, base)


RUNTIME = Runtime(
    "gguf",
    "model.gguf",
    verdict,
    write,
    how_to_run,
    score,
    time,
    bytes_besides,
    why_unsupported=why_unsupported,
    environment="llama",
    settings=("unquantized", "match", "max_error"),
    base="base.gguf",
    beside=("tensor_types.txt", "Modelfile"),
    code={
        "write": "bitplan.runtimes.gguf.write",
        "score": "bitplan.runtimes.gguf.scores",
        "time": "bitplan.runtimes.gguf.timing",
        "size": "bitplan.runtimes.gguf.size",
        "verdict": "bitplan.runtimes.gguf.verdicts",
    },
)
