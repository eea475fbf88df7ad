"""The token embedding and the output matrix under a plan: quantized some rows at a time, never as a whole beside a copy of itself.

A row's value does not depend on other rows in any format that they may have. They have no importance matrix, as in llama.cpp.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bitplan.formats.base import Format
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.finite import check_read
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import Plan

VALUES_AT_ONCE = 1 << 24


def row_slices(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices that cover so many rows, with a bounded number of values each."""
    step = max(1, VALUES_AT_ONCE // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def quantized_rows(rows: Tensor, form: Format, group_size: int | None) -> Tensor:
    """Return rows (rows, columns) as a format holds them, float32."""
    made = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    for part in row_slices(*rows.shape):
        made[part] = form.roundtrip(rows[part], group_size)
    return made


def embedded(plan: Plan, info: ModelInfo, weights: QuantizedWeights) -> Callable[[Tensor], Tensor] | None:
    """Return what makes of rows of the token embedding (rows, hidden) the plan's, float32; None where it leaves them whole."""
    table = next((layer for layer in plan.embeddings(info) if layer.token_table), None)
    if table is None:
        return None
    made = plan.of(table.name)
    return partial(quantized_rows, form=weights.formats[made.wq], group_size=made.group_size)


def output_matrix(matrix: Tensor, plan: Plan, info: ModelInfo, weights: QuantizedWeights) -> Tensor:
    """Return the output matrix (vocabulary, hidden) as the plan has it: float32, or `matrix` itself where it is left whole.

    Its parts are kept among the quantized weights, so that a second plan quantizes nothing anew.
    """
    output = next((layer for layer in plan.embeddings(info) if layer.category == "lm_head"), None)
    if output is None:
        return matrix
    made = torch.empty(matrix.shape, dtype=torch.float32, device=matrix.device)
    for part in row_slices(*matrix.shape):
        made[part] = weights.get(f"{output.name}[{part.start}]", matrix[part], plan.of(output.name))
    return made


def stored_rows(
    checkpoint: Checkpoint, name: str, layer: Layer, plan: Plan, weights: QuantizedWeights
) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows with what the plan makes of them, float32, of the checkpoint's matrix `name`."""
    made = plan.of(layer.name)
    for part in row_slices(*checkpoint.tensors[name].shape):
        rows = checkpoint.read_rows(name, torch.arange(part.start, part.stop))
        check_read({name: rows}, checkpoint)
        yield part, quantized_rows(rows, weights.formats[made.wq], made.group_size)
