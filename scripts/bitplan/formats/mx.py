"""Microscaling formats (OCP Microscaling Formats Specification v1.0, sections 5 and 6).

A block of k values along `in` (k = 32 in the specification) shares one scale 2^e, stored as E8M0: e in [-127, 127],
and one code for NaN. An element is a small float; its value is scale x element.

    format  exponent/mantissa  emax  emin  largest
    E2M1    2 / 1               2     0        6       (mxfp4)
    E2M3    2 / 3               2     0        7.5     (mxfp6)
    E3M2    3 / 2               4    -2       28       (mxfp6)
    E4M3    4 / 3               8    -6      448       (mxfp8)
    E5M2    5 / 2              15   -14    57344       (mxfp8)

The exponent e of a block whose largest |x| is amax, by rule:

    floor   floor(log2 amax) - emax: section 6.3; values above `largest` x 2^e saturate
    rceil   ceil(log2(amax / largest)): the smallest scale without saturation
    mse     floor - 1, floor or floor + 1, whichever has the smallest squared error over the block
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from bitplan.formats.base import Dequantize, Pack, Quantize, Quantized, blocks_of, rows_of

E8M0_LIMIT = 127
E8M0_BIAS = 127  # a stored scale is e + 127


@dataclass(frozen=True)
class Element:
    """An element type: exponents of its largest and its smallest normal binade, mantissa bits, largest value, and a one-byte
    float type that represents all its values."""

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
MANTISSA_FIELD = 0x007FFFFF
MANTISSA_BITS = 23
HALF = 1 << (MANTISSA_BITS - 1)


def round_to_element(scaled: Tensor, element: Element) -> Tensor:
    """Return `scaled` (|x| < 2^100) rounded to the element type: to nearest even, subnormals kept, saturated at the largest value.

    Adding and subtracting 1.5 x 2^(e - m + 23) rounds x of exponent e to a multiple of 2^(e - m), its m-bit neighbours,
    because float32 addition rounds to nearest even. This takes half the passes over memory of a division by the step.
    """
    exponent = (scaled.view(torch.int32) & EXPONENT_FIELD).clamp_(min=element.emin + 127 << MANTISSA_BITS)
    magic = exponent.add_((MANTISSA_BITS - element.mantissa << MANTISSA_BITS) + HALF).view(torch.float32)
    return (scaled + magic).sub_(magic).clamp_(-element.largest, element.largest)


# rule(blocks (out, blocks, k), amax (out, blocks), element, weights (1, blocks, k) or None) -> exponents (out, blocks) int32
ScaleRule = Callable[[Tensor, Tensor, Element, Tensor | None], Tensor]


def within_scales(exponent: Tensor, amax: Tensor, element: Element) -> Tensor:
    """Return exponents clamped in place to E8M0's range in which `largest` stays finite in float32; 0 for blocks of zeros."""
    return exponent.clamp_(-E8M0_LIMIT, E8M0_LIMIT - element.emax).masked_fill_(amax == 0, 0)


def floor_exponent(blocks: Tensor, amax: Tensor, element: Element, weights: Tensor | None) -> Tensor:
    """Return floor(log2 amax) - emax (`floor`)."""
    return within_scales(floor_log2(amax) - element.emax, amax, element)


def ceiling_exponent(blocks: Tensor, amax: Tensor, element: Element, weights: Tensor | None) -> Tensor:
    """Return ceil(log2(amax / largest)) (`rceil`), exactly: `floor` + 1 where amax has the larger mantissa.

    `largest` = M x 2^emax and amax = m x 2^n with M and m in [1, 2), so amax / largest exceeds 2^(n - emax) if m > M.
    """
    mantissa = torch.tensor(element.largest).view(torch.int32).item() & MANTISSA_FIELD
    over = (amax.view(torch.int32) & MANTISSA_FIELD) > mantissa
    return within_scales(floor_log2(amax) - element.emax + over, amax, element)


def squared_error(scaled: Tensor, shift: int, element: Element, weights: Tensor | None) -> Tensor:
    """Return sum w (x - x_q)^2 of each block under a scale 2^shift times the one `scaled` was divided by, (out, blocks)."""
    shifted = scaled * 2.0**-shift
    error = round_to_element(shifted, element).sub_(shifted).square_()
    if weights is not None:
        error.mul_(weights)
    return error.sum(dim=-1).mul_(4.0**shift)


def nearest_exponent(blocks: Tensor, amax: Tensor, element: Element, weights: Tensor | None) -> Tensor:
    """Return the exponent with the smallest squared error among floor - 1, floor and floor + 1 (`mse`); `floor` on a tie.

    Errors are computed in units of the block's `floor` scale: plain float32 squares would overflow or vanish.
    """
    floor = floor_exponent(blocks, amax, element, weights)
    scaled = blocks * power_of_two(-floor).unsqueeze(-1)
    best, least = floor, squared_error(scaled, 0, element, weights)
    for shift in (-1, 1):
        error = squared_error(scaled, shift, element, weights)
        representable = (floor + shift).clamp_(-E8M0_LIMIT, E8M0_LIMIT - element.emax) == floor + shift
        better = (error < least) & representable
        best, least = torch.where(better, floor + shift, best), torch.where(better, error, least)
    return best


RULES: Mapping[str, ScaleRule] = MappingProxyType(
    {"floor": floor_exponent, "rceil": ceiling_exponent, "mse": nearest_exponent}
)


def encode(blocks: Tensor, element: Element, rule: ScaleRule, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return elements (rows, blocks, k) float32 and exponents (rows, blocks) int32; elements of a block that is not finite are NaN."""
    amax = blocks.abs().amax(dim=-1)
    exponents = rule(blocks, amax, element, weights)
    elements = round_to_element(blocks * power_of_two(-exponents).unsqueeze(-1), element)
    return elements.masked_fill_(~torch.isfinite(amax).unsqueeze(-1), float("nan")), exponents


# Processing some rows at a time keeps them in the processor's cache, which is twice as fast.
CHUNK_VALUES = 1 << 18


def quantizer(element: Element, rule: ScaleRule = floor_exponent) -> Quantize:
    """Return the quantizer of an MX format. A NaN or infinity makes its whole block NaN, so that it cannot go unnoticed.

    `importance` (in,) weights the squared errors that the `mse` rule compares; the other rules ignore it.
    """

    def quantize(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
        """Return elements and exponents of values (out, in), some rows at a time."""
        rows, columns = values.shape
        weights = None if importance is None else blocks_of(importance.to(values).reshape(1, -1), group)
        elements = values.new_empty((rows, -(-columns // group), group))
        exponents = torch.empty(elements.shape[:2], dtype=torch.int8, device=values.device)
        step = max(1, CHUNK_VALUES // columns if values.device.type == "cpu" else rows)
        for part in (slice(start, start + step) for start in range(0, rows, step)):
            elements[part], exponents[part] = encode(blocks_of(values[part], group), element, rule, weights)
        return Quantized({"elements": elements, "exponent": exponents}, (rows, columns))

    return quantize


def packer(element: Element) -> Pack:
    """Return the function that stores elements in one byte each, with exactly the same values."""

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
