"""What mlx-lm calls the modules of a family, and how it stores experts.

A file's tensors keep the checkpoint's names, which mlx-lm renames while it loads, but config.json names modules as mlx-lm does. The
experts of a projection are one tensor (experts, out, in), which is stored under mlx-lm's own name.
"""

import re
from collections.abc import Mapping, Sequence

Renames = Sequence[tuple[str, str]]

MIXTRAL: Renames = tuple(
    (rf"\.block_sparse_moe\.experts\.\d+\.{theirs}$", f".block_sparse_moe.switch_mlp.{own}")
    for theirs, own in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
)
EXPERTS: Renames = ((r"\.mlp\.experts\.\d+\.(gate|up|down)_proj$", r".mlp.switch_mlp.\1_proj"),)
NEOX: Renames = (
    (r"^gpt_neox\.layers\.", "model.h."),
    (r"^gpt_neox\.", "model."),
    (r"^embed_out$", "model.embed_out"),
)
# Families whose checkpoints were loaded by mlx-lm, with the modules that it renames.
FAMILIES: Mapping[str, Renames] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"), ()),
    "mixtral": MIXTRAL,
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "olmoe"), EXPERTS),
    "gpt_neox": NEOX,
}


def module_name(layer: str, family: str) -> str:
    """Return the name that mlx-lm has for the module of a layer in a family's checkpoint."""
    for pattern, own in FAMILIES[family]:
        if re.search(pattern, layer):
            return re.sub(pattern, own, layer)
    return layer


def stacked_name(tensor: str) -> str | None:
    """Return the name of the tensor that holds all experts' `tensor`; None for one that is no expert's."""
    layer, _, end = tensor.rpartition(".")
    for pattern, own in (*MIXTRAL, *EXPERTS):
        if re.search(pattern, layer):
            return f"{re.sub(pattern, own, layer)}.{end}"
    return None
