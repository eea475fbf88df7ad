"""The block layouts of GGUF types (ggml-common.h of llama.cpp): the bits of codes, scales and offsets.

Every type stores value = scale x element - offset. A code is stored in one or two fields. In each, a byte has the codes of values
that are `run` apart: value s x run + k of a group is in byte k, at bit s x (bits of the field).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from gguf.quants import IQ4_NL as TABLE_IQ4
from gguf.quants import MXFP4 as TABLE_MXFP4
from torch import Tensor

from bitplan.formats.mx import power_of_two


@dataclass(frozen=True)
class Field:
    """Bits of codes in a block: first byte, bits per code, `run`, and the position of these bits in the code."""

    start: int
    bits: int
    run: int
    low: int = 0


# scales(blocks (rows, bytes) uint8) -> scale (rows, n), and offset (rows, n) or None, float32; for the n parts of a block in order
Scales = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class BlockLayout:
    """A GGUF type: fields of codes, its scales, and its elements: code - `zero`, or the entry of `table` at the code."""

    fields: tuple[Field, ...]
    scales: Scales
    zero: int = 0
    table: tuple[int, ...] = ()

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return sum(field.bits for field in self.fields)


def _half(blocks: Tensor, start: int) -> Tensor:
    """Return the float16 at a byte of each block as float32, (rows, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).to(torch.float32)


def _spread(data: Tensor, bits: int) -> Tensor:
    """Unpack fields of `bits` bits from bytes (rows, n): all lowest fields first, then the next, (rows, n x 8 / bits)."""
    parts = [(data >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.cat(parts, dim=1)


def _scale_and_minimum(start: int) -> Scales:
    """q4_k and q5_k: a float16 scale of the scales and one of the offsets, then eight of 6 bits each in 12 bytes."""

    def scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
        low, middle, high = (blocks[:, start + 4 * i : start + 4 * i + 4] for i in range(3))
        scale = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], dim=1)
        offset = torch.cat([middle & 63, (high >> 4) | ((middle >> 2) & 48)], dim=1)
        return _half(blocks, 0) * scale, _half(blocks, 2) * offset

    return scales


def _q2_k(blocks: Tensor) -> tuple[Tensor, Tensor]:
    both = blocks[:, :16]
    return _half(blocks, 80) * (both & 15), _half(blocks, 82) * (both >> 4)


def _q3_k(blocks: Tensor) -> tuple[Tensor, None]:
    codes = _spread(blocks[:, 96:104], 4) | (_spread(blocks[:, 104:108], 2) << 4)
    return _half(blocks, 108) * (codes.to(torch.float32) - 32), None


def _q6_k(blocks: Tensor) -> tuple[Tensor, None]:
    return _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8), None


def _iq4_xs(blocks: Tensor) -> tuple[Tensor, None]:
    pairs = blocks[:, 4:8]
    low = torch.stack([pairs & 15, pairs >> 4], dim=2).reshape(len(blocks), 8)
    high = torch.stack([(blocks[:, 2:4] >> shift) & 3 for shift in range(0, 8, 2)], dim=2).reshape(len(blocks), 8)
    return _half(blocks, 0) * ((low | high << 4).to(torch.float32) - 32), None


def _one(blocks: Tensor) -> tuple[Tensor, None]:
    return _half(blocks, 0), None


def _with_minimum(blocks: Tensor) -> tuple[Tensor, Tensor]:
    return _half(blocks, 0), -_half(blocks, 2)


def _exponent(blocks: Tensor) -> tuple[Tensor, None]:
    # Half the scale, because the table has doubled elements.
    return power_of_two(blocks[:, :1].to(torch.int32) - 128), None


def _unsigned_e4m3(blocks: Tensor) -> tuple[Tensor, None]:
    # Half the scale, because the table has doubled elements.
    return blocks[:, :4].contiguous().view(torch.float8_e4m3fn).to(torch.float32) / 2, None


IQ4, FP4 = tuple(map(int, TABLE_IQ4.kvalues)), tuple(map(int, TABLE_MXFP4.kvalues))
BLOCKS: Mapping[str, BlockLayout] = MappingProxyType(
    {
        "Q2_K": BlockLayout((Field(16, 2, 32),), _q2_k),
        "Q3_K": BlockLayout((Field(32, 2, 32), Field(0, 1, 32, 2)), _q3_k, 4),
        "Q4_K": BlockLayout((Field(16, 4, 32),), _scale_and_minimum(4)),
        "Q5_K": BlockLayout((Field(48, 4, 32), Field(16, 1, 32, 4)), _scale_and_minimum(4)),
        "Q6_K": BlockLayout((Field(0, 4, 64), Field(128, 2, 32, 4)), _q6_k, 32),
        "Q8_0": BlockLayout((Field(2, 8, 1),), _one),
        "Q4_0": BlockLayout((Field(2, 4, 16),), _one, 8),
        "Q4_1": BlockLayout((Field(4, 4, 16),), _with_minimum),
        "Q5_0": BlockLayout((Field(6, 4, 16), Field(2, 1, 1, 4)), _one, 16),
        "Q5_1": BlockLayout((Field(8, 4, 16), Field(4, 1, 1, 4)), _with_minimum),
        "IQ4_NL": BlockLayout((Field(2, 4, 16),), _one, table=IQ4),
        "IQ4_XS": BlockLayout((Field(8, 4, 16),), _iq4_xs, table=IQ4),
        "MXFP4": BlockLayout((Field(1, 4, 16),), _exponent, table=FP4),
        "NVFP4": BlockLayout((Field(4, 4, 8),), _unsigned_e4m3, table=FP4),
    }
)


def write_codes_(blocks: Tensor, codes: Tensor, layout: BlockLayout) -> None:
    """Write codes (rows, values) int32 into the fields of blocks (rows, bytes) uint8; scales are unchanged."""
    for field in layout.fields:
        shifts = torch.arange(0, 8, field.bits, dtype=torch.int32).reshape(-1, 1)
        some = (codes >> field.low) & (2**field.bits - 1)
        packed = (some.reshape(len(codes), -1, len(shifts), field.run) << shifts).sum(dim=2, dtype=torch.int32)
        data = packed.reshape(len(codes), -1).to(torch.uint8)
        blocks[:, field.start : field.start + data.shape[1]] = data


def codes_of(elements: Tensor, layout: BlockLayout) -> Tensor:
    """Return the codes, int32, of elements of any shape."""
    whole = elements.to(torch.int32)
    if not layout.table:
        return whole + layout.zero
    order = torch.tensor(layout.table, dtype=torch.int32)
    rising, places = torch.unique(order), {value: layout.table.index(value) for value in layout.table}
    code = torch.tensor([places[int(value)] for value in rising], dtype=torch.int32)
    return code[torch.searchsorted(rising, whole.contiguous())]
