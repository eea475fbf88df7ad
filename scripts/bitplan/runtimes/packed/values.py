"""The parts of a quantized layer as packed checkpoints store them: unsigned codes, zero points, bytes of MX blocks."""

import torch
from torch import Tensor

from bitplan.formats import nvfp4
from bitplan.formats.base import Quantized, rows_of
from bitplan.formats.mx import E8M0_BIAS, power_of_two

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SIGN = 8


def unsigned_codes(quantized: Quantized, half: int) -> tuple[Tensor, Tensor]:
    """Return (codes (out, in), zero points (out, in / group)) int32 >= 0 of integers: value = (code - zero) x scale.

    `half` is added to symmetric codes, and is their zero point.
    """
    parts = quantized.parts
    codes = rows_of(parts["codes"], quantized.shape).to(torch.int32)
    if "zero" in parts:
        return codes, parts["zero"].to(torch.int32)
    return codes + half, torch.full(parts["scale"].shape, half, dtype=torch.int32)


def nvfp4_parts(quantized: Quantized) -> Quantized:
    """Return a layer's parts as those of nvfp4, also of the GGUF type, whose matrices have a scale of 1."""
    data = quantized.parts.get("data")
    return quantized if data is None else nvfp4.from_gguf(data, quantized.shape)


def e2m1_codes(quantized: Quantized) -> Tensor:
    """Return the 4-bit codes (out, in) of E2M1 elements: the sign above the place in 0, 0.5, 1, 1.5, 2, 3, 4, 6."""
    elements = rows_of(quantized.parts["elements"].to(torch.float32), quantized.shape).contiguous()
    magnitudes = torch.searchsorted(torch.tensor(E2M1), elements.abs())
    return (magnitudes + SIGN * torch.signbit(elements)).to(torch.int32)


def e2m1_values(codes: Tensor) -> Tensor:
    """Return the values of 4-bit codes, float32."""
    return torch.tensor([*E2M1, *(-value for value in E2M1)])[codes]


def e4m3_bytes(quantized: Quantized) -> Tensor:
    """Return the elements of an MX layer (out, in) as E4M3; E2M3 and E3M2 values are E4M3 values."""
    return rows_of(quantized.parts["elements"].to(torch.float32), quantized.shape).to(torch.float8_e4m3fn).contiguous()


def e8m0_bytes(quantized: Quantized) -> Tensor:
    """Return the scales of MX blocks (out, blocks) uint8: e + 127."""
    return (quantized.parts["exponent"].to(torch.int32) + E8M0_BIAS).to(torch.uint8)


def e8m0_values(scales: Tensor) -> Tensor:
    """Return 2^e of stored scales, float32."""
    return power_of_two(scales.to(torch.int32) - E8M0_BIAS)


def times_groups(values: Tensor, scales: Tensor) -> Tensor:
    """Return values (out, in) with each group along `in` times its scale (out, groups), float32."""
    rows, groups = scales.shape
    return (values.reshape(rows, groups, -1) * scales.to(torch.float32).unsqueeze(-1)).reshape(rows, -1)


def plus_groups(values: Tensor, shifts: Tensor) -> Tensor:
    """Return values (out, in) with a number (out, groups) added to each group along `in`, float32."""
    rows, groups = shifts.shape
    return (values.reshape(rows, groups, -1) + shifts.to(torch.float32).unsqueeze(-1)).reshape(rows, -1)
