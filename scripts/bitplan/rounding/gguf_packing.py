"""Formats whose codes a GGUF type holds as they are: the same values, in as many bits or in more.

Symmetric integers are the integers of Q4_0, Q5_0 and Q8_0 under the same float16 scale; the scales of `_bf16s` are float16 numbers too. Elements of MXFP4 are E2M1's. A value of E2M3 is a
multiple of 1/8 up to 7.5, so 8 x element is an integer of Q8_0 under the scale 2^(e - 3). A scale of more values is repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from bitplan.formats.base import Quantized, rows_of
from bitplan.formats.ggml import block_of
from bitplan.formats.mx import E8M0_BIAS
from bitplan.rounding.gguf_blocks import BLOCKS, codes_of, write_codes_

BLOCK = 32
# Exponents of the powers of two that are float16 numbers, but for the last on either side: the `mse` rule may choose the next one.
HALF_EXPONENTS = (-23, 14)


@dataclass(frozen=True)
class Packing:
    """A GGUF type, and `factor`: the type's element is the format's times this."""

    kind: str
    factor: int = 1


_RULES = ("", "_rceil", "_mse")
# MXFP4's table in ggml has doubled elements under half the scale; the stored exponent is the same.
PACKINGS: Mapping[str, Packing] = MappingProxyType(
    {
        **{
            f"int{bits}{scales}": Packing(kind)
            for bits, kind in enumerate(("Q4_0",) * 3 + ("Q5_0",) + ("Q8_0",) * 3, 2)
            for scales in ("", "_bf16s")
        },
        **{f"mxfp4{rule}": Packing("MXFP4", 2) for rule in _RULES},
        **{f"mxfp6_e2m3{rule}": Packing("Q8_0", 8) for rule in _RULES},
    }
)


def packing_of(form: str, group: int, columns: int) -> Packing | None:
    """Return the type that holds a format's codes in groups of `group` values along rows of `columns`; None if there is none."""
    packing = PACKINGS.get(form)
    return packing if packing is not None and not why_not_packed(form, group, columns) else None


def why_not_packed(form: str, group: int, columns: int) -> str:
    """Return why the type of a format in `PACKINGS` does not hold its codes; "" if it does, or if the format is not among them."""
    if form not in PACKINGS:
        return ""
    if group % BLOCK:
        return f"groups of {group} values are no multiple of {PACKINGS[form].kind}'s block of {BLOCK}"
    if columns % BLOCK:
        return f"{columns} columns are no multiple of {PACKINGS[form].kind}'s block of {BLOCK}"
    return ""


def scales_vary(form: str) -> bool:
    """Return whether a format has scales that its type may lack, so that `scales_fit` must look at them."""
    return form in PACKINGS and form.startswith("mx") and PACKINGS[form].kind != "MXFP4"


def scales_fit(quantized: Quantized, form: str) -> bool:
    """Return whether all scales of a matrix are scales of the type: powers of two that float16 has."""
    if not scales_vary(form):
        return True
    low, high = torch.aminmax(_shifted(quantized.parts["exponent"], PACKINGS[form]))
    return HALF_EXPONENTS[0] <= low.item() and high.item() <= HALF_EXPONENTS[1]


def _shifted(exponent: Tensor, packing: Packing) -> Tensor:
    """Return e - log2(factor) of an MX format's exponents, int32."""
    return exponent.to(torch.int32) - (packing.factor.bit_length() - 1)


def _scale_bytes(parts: Mapping[str, Tensor], packing: Packing) -> Tensor:
    """Return the stored scale of each of the format's groups, (out, groups, n) uint8: E8M0 or float16."""
    if packing.kind == "MXFP4":
        return (parts["exponent"].to(torch.int32) + E8M0_BIAS).to(torch.uint8).unsqueeze(-1)
    if "exponent" in parts:
        scale = torch.exp2(_shifted(parts["exponent"], packing).to(torch.float32)).to(torch.float16)
    else:
        scale = parts["scale"].to(torch.float16)
    return scale.unsqueeze(-1).contiguous().view(torch.uint8)


def pack(quantized: Quantized, form: str, group: int) -> np.ndarray:
    """Return a matrix of a format in `PACKINGS` as rows of bytes of its type, (out, bytes per row) uint8."""
    packing, parts, (rows, columns) = PACKINGS[form], quantized.parts, quantized.shape
    stored = parts["codes"] if "codes" in parts else parts["elements"].to(torch.float32)
    elements = rows_of(stored, quantized.shape).reshape(-1, BLOCK) * packing.factor
    scales = _scale_bytes(parts, packing).repeat_interleave(group // BLOCK, dim=1)[:, : columns // BLOCK]
    blocks = torch.zeros(len(elements), block_of(GGMLQuantizationType[packing.kind])[1], dtype=torch.uint8)
    blocks[:, : scales.shape[2]] = scales.reshape(len(blocks), -1)
    layout = BLOCKS[packing.kind]
    write_codes_(blocks, codes_of(elements, layout), layout)
    return blocks.reshape(rows, -1).numpy()
