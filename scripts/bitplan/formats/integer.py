"""Integers of b bits in groups along `in`, with a float16 scale per group.

Symmetric: q in [-(2^(b-1) - 1), 2^(b-1) - 1], scale = amax / (2^(b-1) - 1), value = q x scale.
(GPTQ, Frantar et al. 2022, section 4; the seed of group-wise W4 uses groups of 128.)
"""

import torch
from torch import Tensor

from bitplan.formats.base import Dequantize, Quantize, Quantized, blocks_of, rows_of

FLOAT16_MAX = 65504.0


def symmetric(bits: int) -> Quantize:
    """Return the symmetric quantizer for `bits` from 2 to 8. A NaN makes its whole group NaN."""
    largest = 2 ** (bits - 1) - 1

    def quantize(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
        blocks = blocks_of(values, group)
        amax = blocks.abs().amax(dim=-1, keepdim=True)
        scale = (amax / largest).clamp(max=FLOAT16_MAX).to(torch.float16)  # (out, blocks, 1); NaN stays NaN
        divisor = scale.to(torch.float32).masked_fill(scale == 0, 1.0)
        codes = torch.round(blocks / divisor).nan_to_num_(0.0).clamp_(-largest, largest)
        return Quantized({"codes": codes.to(torch.int8), "scale": scale.squeeze(-1)}, tuple(values.shape))

    return quantize


def dequantize(quantized: Quantized, group: int) -> Tensor:
    """Return code x scale, `(out, in)` float32."""
    scale = quantized.parts["scale"].to(torch.float32).unsqueeze(-1)
    return rows_of(quantized.parts["codes"].to(torch.float32) * scale, quantized.shape)


DEQUANTIZE: Dequantize = dequantize
