"""Applies a plan to the token embedding and the output matrix, some rows at a time to save memory.

In every format allowed for them, a row does not depend on other rows. They have no importance, as in llama.cpp.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bitplan.formats.base import Format
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import check_finite
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import Plan

VALUES_AT_ONCE = 1 << 24


def row_slices(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices that cover all rows, with a bounded number of values each."""
    step = max(1, VALUES_AT_ONCE // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def quantize_rows(rows: Tensor, form: Format, group_size: int | None) -> Tensor:
    """Return rows (rows, columns) quantized and dequantized, float32."""
    quantized = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    for part in row_slices(*rows.shape):
        quantized[part] = form.roundtrip(rows[part], group_size)
    return quantized


def embedding_quantizer(plan: Plan, info: ModelInfo, weights: QuantizedWeights) -> Callable[[Tensor], Tensor] | None:
    """Return a function that quantizes rows of the token embedding (rows, hidden), float32; None if the plan does not."""
    table = next((layer for layer in plan.embeddings(info) if layer.token_table), None)
    if table is None:
        return None
    choice = plan.of(table.name)
    return partial(quantize_rows, form=weights.formats[choice.wq], group_size=choice.group_size)


def output_matrix(matrix: Tensor, plan: Plan, info: ModelInfo, weights: QuantizedWeights) -> Tensor:
    """Return the plan's output matrix (vocabulary, hidden), float32; `matrix` itself if the plan does not quantize it.

    Its parts are cached in `weights`, so that a second plan does not quantize them again.
    """
    output = next((layer for layer in plan.embeddings(info) if layer.category == "lm_head"), None)
    if output is None:
        return matrix
    quantized = torch.empty(matrix.shape, dtype=torch.float32, device=matrix.device)
    for part in row_slices(*matrix.shape):
        quantized[part] = weights.get(f"{output.name}[{part.start}]", matrix[part], plan.of(output.name))
    return quantized


def quantize_stored_rows(
    checkpoint: Checkpoint, name: str, layer: Layer, plan: Plan, weights: QuantizedWeights
) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice, quantized rows float32) over the rows of the checkpoint's matrix `name`."""
    choice = plan.of(layer.name)
    for part in row_slices(*checkpoint.tensors[name].shape):
        rows = checkpoint.read_rows(name, torch.arange(part.start, part.stop))
        check_finite({name: rows}, checkpoint.folder)
        yield part, quantize_rows(rows, weights.formats[choice.wq], choice.group_size)
