"""vLLM, SGLang and transformers: a plan as a checkpoint of packed tensors."""

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
    """Return the packing that holds a layer's format, or why there is none."""
    from bitplan.runtimes.compressed_tensors.schemes import layer_verdict

    return layer_verdict(layer, made, info)


def write(job: ExportJob) -> Mapping[str, Any]:
    """Write the checkpoint of a job, print what it holds of the plan, and return its report."""
    from bitplan.runtimes.compressed_tensors.write import write as write_folder

    return write_folder(job)


def how_to_run(artifact: Path, name: str) -> str:
    """Return the commands that serve a checkpoint of packed tensors; one whose integers have float16 scales in float16."""
    from bitplan.runtimes.compressed_tensors.schemes import has_half_scales

    half = has_half_scales(artifact)
    dtype = "float16" if half else "bfloat16"
    lines = [
        f"Run it with vLLM:       vllm serve {artifact} --served-model-name {name} --dtype {dtype}",
        f"with SGLang:            python -m sglang.launch_server --model-path {artifact} --dtype {dtype}",
        f"with transformers:      AutoModelForCausalLM.from_pretrained({str(artifact)!r}, dtype={dtype!r})",
    ]
    if half:
        lines.append("float16, because its integer scales are: bfloat16 would round them (those of int4_bf16s not)")
    return "\n".join(lines)


def score(artifact: Path, reference: "Reference", threads: int) -> "TokenScores":
    """Return the scores of the checkpoint in transformers, in float32."""
    from bitplan.runtimes.compressed_tensors.scores import score_folder

    return score_folder(artifact, reference, threads)


def bytes_besides(checkpoint: "Checkpoint", info: "ModelInfo", layers: Collection[str], base: Path | None) -> int:
    """Return the most bytes of a folder besides some layers."""
    from bitplan.runtimes.packed.size import bytes_besides as besides

    return besides(checkpoint, layers)


RUNTIME = Runtime(
    "compressed_tensors",
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
    code={
        "write": "bitplan.runtimes.compressed_tensors.write",
        "score": "bitplan.runtimes.compressed_tensors.scores",
        "size": "bitplan.runtimes.packed.size",
        "verdict": "bitplan.runtimes.compressed_tensors.schemes",
    },
)
