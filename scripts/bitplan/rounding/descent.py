"""Coordinate descent over the codes of a rounded layer: each column is rounded again, given all others, on a fixed grid.

With D the change of the weight and G = D H, the best value of column j is w_j + d_j - G_j / H_jj. Rounding it to the grid never
increases tr(D H D^T) (QuantEase, 2309.01885).
"""

import torch
from torch import Tensor

from bitplan.rounding.columns import FormatColumns

COLUMNS_AT_ONCE = 128


def descend_(columns: FormatColumns, weight: Tensor, hessian: Tensor, sweeps: int) -> None:
    """Improve the elements of `columns` for a weight (out, in) under H (in, in), in the given number of sweeps."""
    rest = weight.T.contiguous()
    change = columns.values() - rest  # (in, out)
    gradient = hessian @ change
    for left in reversed(range(sweeps)):
        for start in range(0, len(rest), COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, len(rest))
            some = slice(start, stop)
            moved = _descend_block_(columns, rest, change, gradient[some], hessian[some, some], start)
            # The last sweep does not come back to earlier columns.
            for others in (slice(stop, None), slice(start))[: 2 if left else 1]:
                gradient[others].addmm_(hessian[others, some], moved)


def _descend_block_(
    columns: FormatColumns, rest: Tensor, change: Tensor, gradient: Tensor, block: Tensor, start: int
) -> Tensor:
    """Descend over the columns of a block of H and update its `gradient` (columns, out). Returns the change of its values."""
    moved = torch.zeros_like(gradient)
    for j, curvature in enumerate(block.diagonal().tolist()):
        if curvature <= 0:
            continue
        k = start + j
        better = columns.on_grid_(k, rest[k] + change[k] - gradient[j] / curvature) - rest[k]
        moved[j] = better - change[k]
        change[k] = better
        gradient.addr_(block[j], moved[j])
    return moved
