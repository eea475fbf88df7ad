"""The codes of a format as bytes of the GGUF type that holds them (gguf_holders.py): the same values, in as many bits or in more."""

from collections.abc import Mapping

import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from bitplan.formats.base import Quantized, rows_of
from bitplan.formats.ggml import block_of
from bitplan.formats.mx import E8M0_BIAS
from bitplan.rounding.gguf_blocks import BLOCKS, codes_of, write_codes_
from bitplan.rounding.gguf_holders import BLOCK, PACKINGS, Packing, scales_vary

# Exponents of the powers of two that are float16 numbers, but for the last on either side: the `mse` rule may choose the next one.
HALF_EXPONENTS = (-23, 14)


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
