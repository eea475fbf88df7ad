"""Rounds one layer column by column on its format's grid; later columns compensate the error of each column (GPTQ, 2210.17323).

When the sweep reaches a span of columns, the format's own quantizer chooses its scales from the updated weights.
"""

import torch

from bitplan.rounding.columns import FormatColumns, LayerToRound, columns_at_once
from bitplan.rounding.descent import descend_
from bitplan.rounding.sweep import Factors, Pruning, sweep_columns

LESS = 0.1  # share of the damping in a descent, which needs no inverse


def round_with_feedback(layer: LayerToRound, factors: Factors, descents: int = 0) -> FormatColumns:
    """Return the columns of the weight rounded with error feedback by the Hessian's `factors`, after `descents` descents."""
    elements = torch.empty_like(layer.weight.T, memory_format=torch.contiguous_format)
    columns = FormatColumns(layer, elements, layer.importance)
    sweep_columns(layer.weight, factors.upper, Pruning(), columns, columns_at_once(layer.group))
    del factors  # as large as H, and of no use to the descents
    if descents:
        # Not a copy of H, which may be as large as a block of the model: its diagonal is put back.
        diagonal = layer.hessian.diagonal()
        kept = diagonal.clone()
        diagonal.add_(LESS * layer.damping * kept.mean())
        descend_(columns, layer.weight, layer.hessian, descents)
        diagonal.copy_(kept)
    return columns
