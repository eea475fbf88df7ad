"""The values that some columns of a weight can take under scales that are fixed: value = scale x element - offset.

An element is what a format stores of one weight: an integer, a small float, an entry of a table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitplan.formats.mx import Element, round_to_element

# round_to_element takes |x| below 2^100; no element type has a value over 2^16.
FARTHEST = 2.0**20

# nearest(scaled column (out,), its place among the scales) -> the nearest element of each, (out,)
Nearest = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Levels:
    """The grid of some columns: scale (n, out), and offset of the same shape or None; each of the n is shared by `run` columns.

    A scale of 0 leaves one value: minus the offset.
    """

    scale: Tensor
    offset: Tensor | None
    run: int
    nearest: Nearest

    def to(self, like: Tensor) -> "Levels":
        """Return the same levels in the dtype and on the device of a tensor."""
        offset = None if self.offset is None else self.offset.to(like)
        return Levels(self.scale.to(like), offset, self.run, self.nearest)

    def elements(self, column: Tensor, place: int) -> Tensor:
        """Return the nearest element of each weight of a column (out,) that is the span's `place`-th."""
        part = place // self.run
        scale = self.scale[part]
        shifted = column if self.offset is None else column + self.offset[part]
        return self.nearest(shifted / torch.where(scale == 0, torch.inf, scale), part)

    def values(self, elements: Tensor, place: int) -> Tensor:
        """Return scale x element - offset, (out,), in the order of operations of the formats' own decoders."""
        part = place // self.run
        made = elements * self.scale[part]
        return made if self.offset is None else made.sub_(self.offset[part])


def integers(low: int, high: int) -> Nearest:
    """Return the rounding to whole numbers from `low` to `high`."""
    return lambda scaled, part: scaled.round_().clamp_(low, high)


def shifted_integers(zero: Tensor, high: int) -> Nearest:
    """Return the rounding to code - zero for codes from 0 to `high`; zero (n, out) as `Levels.scale`."""

    def nearest(scaled: Tensor, part: int) -> Tensor:
        held = zero[part].to(scaled)
        return torch.clamp(scaled.round_(), -held, high - held)

    return nearest


def floats(element: Element) -> Nearest:
    """Return the rounding to a small float type."""

    def nearest(scaled: Tensor, part: int) -> Tensor:
        within = scaled.clamp_(-FARTHEST, FARTHEST).to(torch.float32)
        return round_to_element(within, element).to(scaled.dtype)

    return nearest


def listed(table: Tensor) -> Nearest:
    """Return the rounding to the nearest entry of a rising table; of two that are equally near the lower one."""
    middles = (table[1:] + table[:-1]) / 2

    def nearest(scaled: Tensor, part: int) -> Tensor:
        places = torch.bucketize(scaled, middles.to(scaled))
        return table.to(scaled)[places]

    return nearest
