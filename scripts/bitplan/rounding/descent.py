"""Coordinate descent over the codes of a rounded layer: each column is rounded again, given all others, on a fixed grid.

With D the change of the weight and G = D H, the best value of column j is w_j + d_j - G_j / H_jj. Rounding it to the grid never
increases tr(D H D^T) (QuantEase, 2309.01885).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitplan.rounding.columns import FormatColumns

COLUMNS_AT_ONCE = 128


def descend_(columns: FormatColumns, weight: Tensor, hessian: Tensor, sweeps: int) -> None:
    """Improve the elements of `columns` for a weight (out, in) under H (in, in), in the given number of sweeps.

    Beside these and G one tensor of the weight's size is in memory while G is computed, none afterwards.
    """
    gradient = hessian @ columns.values().sub_(weight.T)
    for left in reversed(range(sweeps)):
        for start in range(0, len(gradient), COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, len(gradient))
            some, last = slice(start, stop), left == 0
            rest = weight[:, some].T.contiguous()
            block = _Block(start, rest, columns.values(some) - rest, gradient[some], hessian[some, some])
            moved = block.descend_(columns, last)
            for others in (slice(stop, None), slice(start))[: 1 if last else 2]:
                gradient[others].addmm_(hessian[others, some], moved)


@dataclass(frozen=True)
class _Block:
    """Columns from `start`: their weights, change and gradient (columns, out), and their block of H."""

    start: int
    rest: Tensor
    change: Tensor
    gradient: Tensor
    hessian: Tensor

    def descend_(self, columns: FormatColumns, last: bool) -> Tensor:
        """Descend over the columns. Returns how far their values moved. The last sweep does not come back to earlier columns."""
        moved = torch.zeros_like(self.gradient)
        for j, curvature in enumerate(self.hessian.diagonal().tolist()):
            if curvature <= 0:
                continue
            aim = self.rest[j] + self.change[j] - self.gradient[j] / curvature
            better = columns.on_grid_(self.start + j, aim) - self.rest[j]
            moved[j] = better - self.change[j]
            self.change[j] = better
            first = j + 1 if last else 0
            self.gradient[first:].addr_(self.hessian[j, first:], moved[j])
        return moved
