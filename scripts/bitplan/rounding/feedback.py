"""Rounds one layer column by column on its format's grid; later columns compensate the error of each column (GPTQ, 2210.17323).

When the sweep reaches a span of columns, the format's own quantizer chooses its scales from the updated weights.
"""

import torch
from torch import Tensor

from bitplan.rounding.columns import FormatColumns, LayerToRound, columns_at_once
from bitplan.rounding.descent import descend_
from bitplan.rounding.sweep import Factors, Pruning, sweep_columns

LESS = 0.1  # share of the damping in a descent, which needs no inverse


def round_with_feedback(
    layer: LayerToRound, factors: Factors, descents: int = 0, tunable: bool = False
) -> FormatColumns:
    """Return the columns of the weight rounded with error feedback by the Hessian's `factors`, after `descents` descents.

    Only `tunable` ones keep their centers, as large as the weight.
    """
    columns = sweep_layer(layer, factors, layer.importance, tunable)
    descend_layer_(columns, layer.hessian, descents)
    return columns


def sweep_layer(
    layer: LayerToRound, factors: Factors, importance: Tensor | None, tunable: bool = False
) -> FormatColumns:
    """Return the columns of the weight rounded with error feedback; quantizers choose scales by the `importance` of columns (in,). H is not read."""
    elements = torch.empty_like(layer.weight.T, memory_format=torch.contiguous_format)
    columns = FormatColumns(layer, elements, importance, torch.empty_like(elements) if tunable else None)
    sweep_columns(layer.weight, factors.upper, Pruning(), columns, columns_at_once(layer.group))
    return columns


def descend_layer_(columns: FormatColumns, hessian: Tensor, descents: int) -> None:
    """Improve the elements of a swept layer in descents under H (in, in), slightly damped."""
    if not descents:
        return
    layer = columns.layer
    # Not a copy of H, which may be as large as a block of the model: its diagonal is put back.
    diagonal = hessian.diagonal()
    kept = diagonal.clone()
    diagonal.add_(LESS * layer.damping * kept.mean())
    descend_(columns, layer.weight, hessian, descents)
    diagonal.copy_(kept)
