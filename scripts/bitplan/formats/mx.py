"""Microscaling formats (OCP Microscaling Formats Specification v1.0, sections 5 and 6).

A block of k values along `in` (k = 32 in the specification) shares one scale 2^e, stored as E8M0: e in [-127, 127],
and one code for NaN. An element is a small float; its value is scale x element.

    format  exponent/mantissa  emax  emin  largest
    E2M1    2 / 1               2     0        6       (mxfp4)
    E2M3    2 / 3               2     0        7.5     (mxfp6)
    E3M2    3 / 2               4    -2       28       (mxfp6)
    E4M3    4 / 3               8    -6      448       (mxfp8)
    E5M2    5 / 2              15   -14    57344       (mxfp8)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitplan.formats.base import Dequantize, Pack, Quantize, Quantized, blocks_of, rows_of

E8M0_LIMIT = 127


@dataclass(frozen=True)
class Element:
    """An element type: exponent of its largest binade, of its smallest normal binade, mantissa bits, largest value, and the
    one-byte float that holds every value of it."""

    emax: int
    emin: int
    mantissa: int
    largest: float
    storage: torch.dtype = torch.float8_e4m3fn


E2M1 = Element(emax=2, emin=0, mantissa=1, largest=6.0)
E2M3 = Element(emax=2, emin=0, mantissa=3, largest=7.5)
E3M2 = Element(emax=4, emin=-2, mantissa=2, largest=28.0)
E4M3 = Element(emax=8, emin=-6, mantissa=3, largest=448.0)
E5M2 = Element(emax=15, emin=-14, mantissa=2, largest=57344.0, storage=torch.float8_e5m2)


def floor_log2(values: Tensor) -> Tensor:
    """Return floor(log2 |x|) as int32, read from the exponent field of float32; -127 for zero and subnormals."""
    return (values.view(torch.int32) >> 23 & 0xFF) - 127


def power_of_two(exponents: Tensor) -> Tensor:
    """Return 2^e in float32 for int32 e in [-149, 127], exactly, subnormal results included."""
    normal = (exponents.clamp(min=-126) + 127 << 23).view(torch.float32)
    return torch.where(exponents < -126, normal * torch.exp2((exponents + 126).to(torch.float32)), normal)


EXPONENT_FIELD = 0x7F800000
MANTISSA_BITS = 23
HALF = 1 << (MANTISSA_BITS - 1)


def round_to_element(scaled: Tensor, element: Element) -> Tensor:
    """Return `scaled` (|x| < 2^100) rounded to the element type: to nearest even, subnormals kept, saturated at the largest value.

    Adding and taking away 1.5 x 2^(e - m + 23) rounds x of exponent e to a multiple of 2^(e - m), its m-bit neighbours,
    by the float32 addition's own rounding to nearest even: half the passes over memory that dividing by the step takes.
    """
    exponent = (scaled.view(torch.int32) & EXPONENT_FIELD).clamp_(min=element.emin + 127 << MANTISSA_BITS)
    magic = exponent.add_((MANTISSA_BITS - element.mantissa << MANTISSA_BITS) + HALF).view(torch.float32)
    return (scaled + magic).sub_(magic).clamp_(-element.largest, element.largest)


def scale_exponent(amax: Tensor, element: Element) -> Tensor:
    """Return the shared exponent of blocks whose largest |x| is `amax`, int32: floor(log2 amax) - emax, within E8M0."""
    return (floor_log2(amax) - element.emax).clamp_(-E8M0_LIMIT, E8M0_LIMIT).masked_fill_(amax == 0, 0)


def quantizer(element: Element) -> Quantize:
    """Return the quantizer of an MX format. A NaN or infinity makes its whole block NaN: never a silent number."""

    def quantize(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
        blocks = blocks_of(values, group)
        amax = blocks.abs().amax(dim=-1)
        exponent = scale_exponent(amax, element)
        elements = round_to_element(blocks * power_of_two(-exponent).unsqueeze(-1), element)
        elements.masked_fill_(~torch.isfinite(amax).unsqueeze(-1), float("nan"))
        return Quantized({"elements": elements, "exponent": exponent.to(torch.int8)}, tuple(values.shape))

    return quantize


def packer(element: Element) -> Pack:
    """Return the function that keeps elements in one byte each; their values stay exactly the same."""

    def pack(quantized: Quantized) -> Quantized:
        return Quantized(
            {**quantized.parts, "elements": quantized.parts["elements"].to(element.storage)}, quantized.shape
        )

    return pack


def dequantize(quantized: Quantized, group: int) -> Tensor:
    """Return scale x element, `(out, in)` float32."""
    scale = power_of_two(quantized.parts["exponent"].to(torch.int32))
    return rows_of(quantized.parts["elements"].to(torch.float32) * scale.unsqueeze(-1), quantized.shape)


DEQUANTIZE: Dequantize = dequantize
