"""The grids of the formats: the values that a quantized matrix can represent under its scales, and how to store new elements.

A format's own quantizer chooses the scales; a grid reads them from the quantized parts. A new format needs an entry in `GRIDS` only
if its parts differ from those of existing formats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from bitplan.formats import mx, nvfp4
from bitplan.formats.base import Quantized
from bitplan.formats.facts import TYPE_NAMES
from bitplan.rounding.gguf_blocks import BLOCKS, BlockLayout, codes_of, write_codes_
from bitplan.rounding.levels import Levels, floats, integers, shifted_integers, table_elements


@dataclass(frozen=True)
class Grid:
    """How a format's parts are read and written.

    read(parts of columns that share scales, values per part) returns their `Levels`; write(the same parts, elements (out, columns)
    float32) returns parts with these elements and the same scales.
    """

    read: Callable[[Quantized, int], Levels]
    write: Callable[[Quantized, Tensor], Quantized]


def _gguf(layout: BlockLayout) -> Grid:
    low = -layout.zero if layout.bits < 8 else -(2**7)
    kind = integers(low, low + 2**layout.bits - 1)
    if layout.table:
        kind = table_elements(torch.unique(torch.tensor(layout.table, dtype=torch.float32)))

    def read(quantized: Quantized, group: int) -> Levels:
        scale, offset = layout.scales(quantized.parts["data"])
        parts = [None if part is None else part.T.contiguous() for part in (scale, offset)]
        return Levels(*parts, group // len(parts[0]), kind)

    def write(quantized: Quantized, elements: Tensor) -> Quantized:
        data = quantized.parts["data"].clone()
        write_codes_(data, codes_of(elements, layout), layout)
        return Quantized({"data": data}, quantized.shape)

    return Grid(read, write)


def _padded(elements: Tensor, like: Tensor) -> Tensor:
    """Return elements (out, columns) in the shape of a block (out, 1, group), padded with zeros."""
    short = like.shape[-1] - elements.shape[1]
    return torch.nn.functional.pad(elements, (0, short)).unsqueeze(1)


def _mx(element: mx.Element) -> Grid:
    def read(quantized: Quantized, group: int) -> Levels:
        scale = mx.power_of_two(quantized.parts["exponent"].to(torch.int32))
        return Levels(scale.T.contiguous(), None, group, floats(element))

    def write(quantized: Quantized, elements: Tensor) -> Quantized:
        padded = _padded(elements, quantized.parts["elements"])
        return Quantized({**quantized.parts, "elements": padded}, quantized.shape)

    return Grid(read, write)


def _nvfp4() -> Grid:
    def read(quantized: Quantized, group: int) -> Levels:
        return Levels(nvfp4.scales_of(quantized).T.contiguous(), None, group, floats(mx.E2M1))

    return Grid(read, _mx(mx.E2M1).write)


def _integer(bits: int) -> Grid:
    most = 2 ** (bits - 1) - 1

    def read(quantized: Quantized, group: int) -> Levels:
        return Levels(_scales(quantized), None, group, integers(-most, most))

    def write(quantized: Quantized, elements: Tensor) -> Quantized:
        codes = _padded(elements, quantized.parts["codes"]).to(torch.int8)
        return Quantized({**quantized.parts, "codes": codes}, quantized.shape)

    return Grid(read, write)


def _asymmetric(bits: int) -> Grid:
    def read(quantized: Quantized, group: int) -> Levels:
        zero = quantized.parts["zero"].T.to(torch.float32).contiguous()
        return Levels(_scales(quantized), None, group, shifted_integers(zero, 2**bits - 1))

    def write(quantized: Quantized, elements: Tensor) -> Quantized:
        zero = quantized.parts["zero"].to(torch.float32).unsqueeze(-1)
        codes = (_padded(elements, quantized.parts["codes"]) + zero).to(torch.uint8)
        return Quantized({**quantized.parts, "codes": codes}, quantized.shape)

    return Grid(read, write)


def _scales(quantized: Quantized) -> Tensor:
    return quantized.parts["scale"].T.to(torch.float32).contiguous()


ELEMENTS = {
    "mxfp4": mx.E2M1,
    "mxfp6_e2m3": mx.E2M3,
    "mxfp6_e3m2": mx.E3M2,
    "mxfp8": mx.E4M3,
    "mxfp8_e5m2": mx.E5M2,
}
GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        **{name: _gguf(BLOCKS[kind]) for name, kind in TYPE_NAMES.items() if kind in BLOCKS},
        **{f"{name}{rule}": _mx(element) for name, element in ELEMENTS.items() for rule in ("", "_rceil", "_mse")},
        **dict.fromkeys(("nvfp4", "nvfp4_pow2"), _nvfp4()),
        **{f"int{bits}{scales}": _integer(bits) for bits in range(2, 9) for scales in ("", "_bf16s")},
        **{f"int{bits}_asym{scales}": _asymmetric(bits) for bits in range(2, 9) for scales in ("", "_bf16s")},
    }
)  # fmt: skip


def is_rounded(name: str) -> bool:
    """Return whether rounding stores codes of a format: chosen on its grid, or those of the quantizer for GGUF types without one."""
    return name in GRIDS or name in TYPE_NAMES


def join_parts(parts: list[Quantized], shape: tuple[int, int]) -> Quantized:
    """Join the parts of adjacent columns to those of the whole matrix (out, in); a part with one dimension is the matrix's own."""

    def joined(name: str) -> Tensor:
        some = [part.parts[name] for part in parts]
        return torch.cat(some, dim=1) if some[0].dim() > 1 else some[0]

    return Quantized({name: joined(name) for name in parts[0].parts}, shape)
