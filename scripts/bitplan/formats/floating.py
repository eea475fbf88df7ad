"""Plain 16-bit floats: bfloat16 (8 exponent bits, 7 mantissa bits) and IEEE half precision (5 and 10)."""

import torch
from torch import Tensor

from bitplan.formats.base import Dequantize, Quantize, Quantized


def caster(dtype: torch.dtype) -> Quantize:
    """Return a quantizer that rounds to `dtype`, to nearest even."""

    def quantize(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
        return Quantized({"values": values.to(dtype)}, tuple(values.shape))

    return quantize


def widen(quantized: Quantized, group: int) -> Tensor:
    """Return the values in float32, exactly."""
    return quantized.parts["values"].to(torch.float32)


WIDEN: Dequantize = widen
