"""Integers of b bits in groups along `in`, with a 16-bit scale per group: float16, or bfloat16 (`_bf16s`).

Symmetric: q in [-(2^(b-1) - 1), 2^(b-1) - 1], scale = amax / (2^(b-1) - 1), value = q x scale.
Asymmetric: q in [0, 2^b - 1], scale = (max - min) / (2^b - 1) where min <= 0 <= max, so that 0 stays 0; a zero point of b
bits per group, zero = round(-min / scale), value = (q - zero) x scale.
(GPTQ, Frantar et al. 2022, section 4, in groups as is usual for 4 bits.)

A scale of `_bf16s` is a bfloat16 number that is a float16 number too, of 8 significant bits in [2^-17, 65280]: a model in either type
keeps it as it is, where a bfloat16 model rounds float16 scales to 8 bits.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitplan.formats.base import Dequantize, Quantize, Quantized, blocks_of, rows_of

# The positive range of scales of each type. float16: its smallest number, a subnormal, and its largest. bfloat16: where all of its
# numbers are float16 numbers, whose last place is 2^-24.
SCALE_RANGES: Mapping[torch.dtype, tuple[float, float]] = {
    torch.float16: (2.0**-24, 65504.0),
    torch.bfloat16: (2.0**-17, 65280.0),
}


def stored_scale(scale: Tensor, reach: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Return `scale` in its stored type, clamped to that type's range; NaN where `reach`, the largest |x| of the group, is not finite."""
    clamped = scale.clamp(*SCALE_RANGES[dtype]).masked_fill_(~torch.isfinite(reach), float("nan"))
    return clamped.to(dtype)


def symmetric(bits: int, scales: torch.dtype = torch.float16) -> Quantize:
    """Return the symmetric quantizer for `bits` from 2 to 8 and a type of scales. A NaN or infinity makes its whole group NaN."""
    largest = 2 ** (bits - 1) - 1

    def quantize(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
        blocks = blocks_of(values, group)
        amax = blocks.abs().amax(dim=-1, keepdim=True)
        scale = stored_scale(amax / largest, amax, scales)  # (out, blocks, 1)
        codes = (blocks / scale.to(torch.float32)).round_().nan_to_num_(0.0).clamp_(-largest, largest)
        return Quantized({"codes": codes.to(torch.int8), "scale": scale.squeeze(-1)}, tuple(values.shape))

    return quantize


def dequantize(quantized: Quantized, group: int) -> Tensor:
    """Return code x scale, `(out, in)` float32."""
    scale = quantized.parts["scale"].to(torch.float32).unsqueeze(-1)
    return rows_of(quantized.parts["codes"].to(torch.float32) * scale, quantized.shape)


DEQUANTIZE: Dequantize = dequantize


def asymmetric(bits: int, scales: torch.dtype = torch.float16) -> Quantize:
    """Return the asymmetric quantizer for `bits` from 2 to 8 and a type of scales. A NaN or infinity makes its whole group NaN."""
    largest = 2**bits - 1

    def quantize(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
        """Return codes, zeros and scales of values (out, in), each group between its own ends and 0; `importance` changes nothing."""
        blocks = blocks_of(values, group)
        low, high = torch.aminmax(blocks, dim=-1, keepdim=True)
        low, high = low.clamp_(max=0.0), high.clamp_(min=0.0)
        scale = stored_scale((high - low) / largest, torch.maximum(high, -low), scales)  # (out, blocks, 1)
        divisor = scale.to(torch.float32)
        zero = (-low / divisor).round_().nan_to_num_(0.0).clamp_(0, largest)
        codes = (blocks / divisor).round_().add_(zero).nan_to_num_(0.0).clamp_(0, largest)
        whole = {"codes": codes.to(torch.uint8), "zero": zero.squeeze(-1).to(torch.uint8)}
        return Quantized({**whole, "scale": scale.squeeze(-1)}, tuple(values.shape))

    return quantize


def dequantize_asymmetric(quantized: Quantized, group: int) -> Tensor:
    """Return (code - zero) x scale, `(out, in)` float32."""
    scale, zero = (quantized.parts[name].to(torch.float32).unsqueeze(-1) for name in ("scale", "zero"))
    return rows_of((quantized.parts["codes"].to(torch.float32) - zero).mul_(scale), quantized.shape)


DEQUANTIZE_ASYMMETRIC: Dequantize = dequantize_asymmetric


def whole_rows(quantize: Quantize) -> Quantize:
    """Return the quantizer with one group per row: a token of activations, an output channel of weights."""
    return lambda values, group, importance=None: quantize(values, values.shape[1], importance)


def whole_tensor(quantize: Quantize) -> Quantize:
    """Return the quantizer with one group for all values."""

    def at_once(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
        quantized = quantize(values.reshape(1, -1), values.numel(), importance)
        return Quantized(quantized.parts, tuple(values.shape))

    return at_once


def dequantize_at_once(quantized: Quantized, group: int) -> Tensor:
    """Return (code - zero) x scale of a tensor with one group, `(out, in)` float32."""
    flat = Quantized(quantized.parts, (1, quantized.shape[0] * quantized.shape[1]))
    return dequantize_asymmetric(flat, group).reshape(quantized.shape)


DEQUANTIZE_AT_ONCE: Dequantize = dequantize_at_once
