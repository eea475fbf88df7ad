"""Quantization grids for several widths: for each width a scale (and a zero point) per row, or per group of a row.

They are computed once per width from the original weights: INT-b as in `formats/integer.py`, with float16 scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.formats.base import blocks_of
from bitplan.formats.integer import stored_scale

WIDEST = 8
UNQUANTIZED_WIDTH = 16
# Shares of the range that are tried for clipping (GPTQ's `mse`: error^2.4, down to a fifth of the range).
SHRINKS = tuple(1 - 0.8 * i / 16 for i in range(16))
ERROR_POWER = 2.4
# With more bits clipping does not help: for a Gaussian at 6 bits the best range is 4 standard deviations, about a row's maximum.
WIDEST_CUT = 5
# In longer groups only every n-th value is used, so that clipping stays cheap compared with the sweep.
VALUES_LOOKED_AT = 512
VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Grid:
    """Scales and zero points (K, groups, out) of K widths, float32 on the weights' device; zero points are 0 where symmetric."""

    widths: tuple[int, ...]
    scale: Tensor
    zero: Tensor
    symmetric: bool
    group: int

    def limits(self, width: int) -> tuple[int, int]:
        """Return the smallest and largest code of a width."""
        most = 2 ** (width - 1) - 1
        return (-most, most) if self.symmetric else (0, 2**width - 1)

    def codes(self, column: Tensor, option: int, group: int) -> Tensor:
        """Return the codes of a column (out,), or of several (columns, out), in option k of the widths, in the dtype of the column."""
        low, high = self.limits(self.widths[option])
        scale, zero = (part[option, group].to(column.dtype) for part in (self.scale, self.zero))
        return (column / scale).round_().add_(zero).clamp_(low, high)

    def values(self, codes: Tensor, option: int, group: int) -> Tensor:
        """Return (code - zero) x scale, in the shape of the codes."""
        scale, zero = (part[option, group].to(codes.dtype) for part in (self.scale, self.zero))
        return (codes - zero) * scale


def _ranges(blocks: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value, including 0, of blocks (out, groups, group): (out, groups) each."""
    low, high = torch.aminmax(blocks, dim=-1)
    if symmetric:
        reach = torch.maximum(high, -low)
        return -reach, reach
    return low.clamp_(max=0.0), high.clamp_(min=0.0)


def _scaled(low: Tensor, high: Tensor, width: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of ranges, float32: amax / (2^(b-1) - 1), or (max - min) / (2^b - 1) and round(-min / scale)."""
    reach = torch.maximum(high, -low)
    span = reach / (2 ** (width - 1) - 1) if symmetric else (high - low) / (2**width - 1)
    scale = stored_scale(span, reach).to(torch.float32)
    zero = torch.zeros_like(scale) if symmetric else (-low / scale).round_().clamp_(0, 2**width - 1)
    return scale, zero


def _error(blocks: Tensor, scale: Tensor, zero: Tensor, width: int, symmetric: bool) -> Tensor:
    """Return sum |w - Q(w)|^2.4 of each block, (out, groups)."""
    most = 2 ** (width - 1) - 1
    low, high = (-most, most) if symmetric else (0, 2**width - 1)
    scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1)
    rounded = ((blocks / scale).round_().add_(zero).clamp_(low, high) - zero) * scale
    return (blocks - rounded).abs_().pow_(ERROR_POWER).sum(-1)


def _cut(blocks: Tensor, width: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of the clipped range with the smallest error for each block (out, groups, group)."""
    low, high = _ranges(blocks, symmetric)
    blocks = blocks[..., :: -(-blocks.shape[-1] // VALUES_LOOKED_AT)].contiguous()
    best = _scaled(low, high, width, symmetric)
    least = _error(blocks, *best, width, symmetric)
    for share in SHRINKS[1:]:
        tried = _scaled(low * share, high * share, width, symmetric)
        error = _error(blocks, *tried, width, symmetric)
        better = error < least
        best = tuple(torch.where(better, new, old) for new, old in zip(tried, best, strict=True))
        least = torch.minimum(least, error)
    return best


@dataclass
class Quantizer:
    """The settings of a layer's grid. `bits` is the width if there is no allocation; 16 leaves the weights unquantized."""

    bits: int = UNQUANTIZED_WIDTH
    perchannel: bool = True
    sym: bool = True
    mse: bool = False
    group_size: int | None = None

    def configure(
        self,
        bits: int,
        perchannel: bool = True,
        sym: bool = True,
        mse: bool = False,
        group_size: int | None = None,
    ) -> None:
        """Set the width (2 to 8, or 16), a scale per row or for the whole matrix, symmetric or with a zero point.

        `mse` clips a range if that lowers its error; `group_size` gives each group of that many inputs of a row a separate scale.
        Raises `UserError` for an invalid width.
        """
        check_widths([bits])
        self.bits, self.perchannel, self.sym, self.mse, self.group_size = bits, perchannel, sym, mse, group_size

    def grid(self, weight: Tensor, widths: Sequence[int]) -> Grid:
        """Return the grid of a weight (out, in) for some widths from 2 to 8."""
        group = (self.group_size if self.perchannel else None) or weight.shape[1]
        blocks = blocks_of(weight.to(torch.float32), group)
        pairs = [self._of_width(blocks, width) for width in widths]
        scale, zero = (torch.stack([pair[i].T for pair in pairs]).contiguous() for i in (0, 1))
        return Grid(tuple(widths), scale, zero, self.sym, group)

    def _of_width(self, blocks: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return scale and zero point (out, groups) of blocks (out, groups, group)."""
        cut = self.mse and width <= WIDEST_CUT
        if not self.perchannel:
            one = blocks.reshape(1, 1, -1)
            pair = _cut(one, width, self.sym) if cut else _scaled(*_ranges(one, self.sym), width, self.sym)
            return tuple(part.expand(blocks.shape[0], 1) for part in pair)
        if not cut:
            return _scaled(*_ranges(blocks, self.sym), width, self.sym)
        step = max(1, VALUES_AT_ONCE // (blocks.shape[1] * min(blocks.shape[2], VALUES_LOOKED_AT)))
        parts = [_cut(rows, width, self.sym) for rows in blocks.split(step)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def check_widths(widths: Sequence[int], source: str = "bits") -> None:
    """Raise `UserError` unless every width is 2 to 8, or the only one is 16."""
    wrong = [width for width in widths if not (2 <= width <= WIDEST)]
    if not widths or (wrong and list(widths) != [UNQUANTIZED_WIDTH]):
        shown = ", ".join(map(str, wrong)) or "nothing"
        raise user_error(
            "ROUNDING-BAD-WIDTH",
            source,
            f"{shown} is not a valid width",
            "Use widths from 2 to 8, or 16 alone for no quantization",
        )
