"""The values that columns of a weight can take under fixed scales: value = scale x element - offset.

An element is what a format stores for one weight: an integer, a small float, or an entry of a table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bitplan.formats.mx import Element, round_to_element

# round_to_element needs |x| below 2^100; no element type has a value above 2^16.
FARTHEST = 2.0**20


@dataclass(frozen=True)
class Elements:
    """The elements of a format. The last argument of both functions is the index of each column's scale: a number or (columns,) int64.

    nearest(scaled (..., out), part) returns the nearest elements; beside(elements, direction, part) returns the next elements in
    direction -1 or 1, or the same ones at the end of the range.
    """

    nearest: Callable[[Tensor, int | Tensor], Tensor]
    beside: Callable[[Tensor, Tensor, int | Tensor], Tensor]


@dataclass(frozen=True)
class Levels:
    """The grid of some columns: scale (n, out), and offset of the same shape or None; each row is shared by `run` columns.

    Functions take a column (out,) and its index in the span, or columns (m, out) and their indices (m,) int64. With a scale of 0
    the only value is minus the offset.
    """

    scale: Tensor
    offset: Tensor | None
    run: int
    kind: Elements

    def to(self, like: Tensor) -> "Levels":
        """Return the same levels in the dtype and on the device of a tensor."""
        offset = None if self.offset is None else self.offset.to(like)
        return Levels(self.scale.to(like), offset, self.run, self.kind)

    def scaled(self, columns: Tensor, place: int | Tensor) -> Tensor:
        """Return columns in units of elements: (w + offset) / scale, or 0 if the scale is 0."""
        part = place // self.run
        if self.offset is None:
            return columns / self._divisor[part]
        return (columns + self.offset[part]).div_(self._divisor[part])

    @cached_property
    def _divisor(self) -> Tensor:
        return torch.where(self.scale == 0, torch.inf, self.scale)

    def elements(self, columns: Tensor, place: int | Tensor) -> Tensor:
        """Return the nearest element of each weight."""
        return self.kind.nearest(self.scaled(columns, place), place // self.run)

    def values(self, elements: Tensor, place: int | Tensor) -> Tensor:
        """Return scale x element - offset, with the operations in the same order as in the formats' decoders."""
        part = place // self.run
        values = elements * self.scale[part]
        return values if self.offset is None else values.sub_(self.offset[part])


def integers(low: int, high: int) -> Elements:
    """Return the whole numbers from `low` to `high`."""
    return Elements(
        lambda scaled, part: scaled.round_().clamp_(low, high),
        lambda elements, direction, part: (elements + direction).clamp_(low, high),
    )


def shifted_integers(zero: Tensor, high: int) -> Elements:
    """Return code - zero for codes from 0 to `high`; zero (n, out) as `Levels.scale`."""

    def clamped(whole: Tensor, part: int | Tensor) -> Tensor:
        zeros = zero[part].to(whole)
        return torch.clamp(whole, -zeros, high - zeros)

    return Elements(
        lambda scaled, part: clamped(scaled.round_(), part),
        lambda elements, direction, part: clamped(elements + direction, part),
    )


def floats(element: Element) -> Elements:
    """Return the elements of a small float type."""

    def nearest(scaled: Tensor, part: int | Tensor) -> Tensor:
        within = scaled.clamp_(-FARTHEST, FARTHEST).to(torch.float32)
        return round_to_element(within, element).to(scaled.dtype)

    return Elements(nearest, table_elements(values_of(element)).beside)


def values_of(element: Element) -> Tensor:
    """Return all values of a small float type in rising order, float32."""
    mantissas = torch.arange(2**element.mantissa) / 2**element.mantissa
    binades = [(1 + mantissas) * 2.0**exponent for exponent in range(element.emin, element.emax + 1)]
    above = torch.cat([mantissas * 2.0**element.emin, *binades])
    above = above[above <= element.largest]
    return torch.unique(torch.cat([-above, above]) + 0.0)


def table_elements(table: Tensor) -> Elements:
    """Return the elements of a table in rising order; ties round down."""
    middles = (table[1:] + table[:-1]) / 2

    def nearest(scaled: Tensor, part: int | Tensor) -> Tensor:
        return table.to(scaled)[torch.bucketize(scaled, middles.to(scaled))]

    def beside(elements: Tensor, direction: Tensor, part: int | Tensor) -> Tensor:
        places = torch.searchsorted(table.to(elements), elements.contiguous()) + direction.to(torch.int64)
        return table.to(elements)[places.clamp_(0, len(table) - 1)]

    return Elements(nearest, beside)
