"""One scale of the matrix for the NVFP4 layers that vLLM stores as one: it takes the largest of theirs for all of them.

Scales that are powers of two are changed exactly: those of the blocks take over the difference.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.runtimes.packed.shards import Content

SCALE, BLOCKS, CODES = "weight_global_scale", "weight_scale", "weight_packed"
MAGNITUDES = 0x77  # of the two codes in a byte, without their signs


def with_shared_scales(contents: Mapping[str, Content], groups: Iterable[Sequence[str]]) -> dict[str, Content]:
    """Return the tensors of a block in which all NVFP4 layers of a group {stored names} have the smallest of their scales.

    Raises `UserError` if the scale of some block is then no E4M3 number.
    """
    shared = dict(contents)
    for group in groups:
        layers = [name for name in group if f"{name}.{SCALE}" in contents]
        if layers:
            least = torch.stack([contents[f"{name}.{SCALE}"] for name in layers]).amin(dim=0)
            for name in layers:
                shared[f"{name}.{BLOCKS}"] = _under(least, name, contents)
                shared[f"{name}.{SCALE}"] = least
    return shared


def _under(scale: Tensor, name: str, contents: Mapping[str, Content]) -> Tensor:
    """Return the block scales (out, blocks) E4M3 of a layer for another scale of the matrix (1,)."""
    old, codes = contents[f"{name}.{BLOCKS}"], contents[f"{name}.{CODES}"]
    wide = old.to(torch.float32) * (scale / contents[f"{name}.{SCALE}"])
    new = wide.to(torch.float8_e4m3fn)
    used = ((codes & MAGNITUDES) != 0).reshape(*old.shape, -1).any(dim=-1)
    if not torch.equal(new.to(torch.float32)[used], wide[used]):
        what = "under the scale that it shares with layers stored as one, scales of its blocks are no E4M3 numbers"
        hint = "Use nvfp4_pow2 if these layers have nvfp4, else another format for them, or export.fusion: keep"
        raise user_error("RUNTIME-NVFP4-RANGE", name, what, hint)
    return new
