"""The columns of one layer on its format's grid: the layer to round, and the elements chosen so far."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bitplan.formats.base import Format, Quantized
from bitplan.rounding.grids import GRIDS, join_parts
from bitplan.rounding.levels import Levels
from bitplan.rounding.sweep import Factors, weighted_squares

DAMPING = 0.01
COLUMNS_AT_ONCE = 128


def no_moments(weight: Tensor) -> Tensor:
    """Return H of a layer (out, in) that no token has reached: zeros (in, in), in the memory of one."""
    return weight.new_zeros(1, 1).expand(weight.shape[1], weight.shape[1])


def damped_importance(hessian: Tensor, damping: float) -> Tensor | None:
    """Return the diagonal of H (in, in) plus `damping` times its mean, (in,) float32 on the processor; None if it is zero."""
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    return (diagonal + damping * mean).to("cpu", torch.float32) if mean > 0 else None


@dataclass(frozen=True)
class LayerToRound:
    """A weight (out, in) float32 or float64, H (in, in) of its inputs in the same dtype, its format and values per block.

    `damping` times the mean of H's diagonal is added to the diagonal.
    `drift` (out, in) is W C, C the cross moments (`CrossMoments.matrix`), if rounding aims at the outputs for the reference model's inputs,
    `share` of the way from those for its own inputs.
    `tokens` and `shrinkage` say what H comes from. `held_out` is the error of feedback relative to nearest on tokens held out, where there were so few that it was judged.
    """

    name: str
    weight: Tensor
    hessian: Tensor
    form: Format
    group: int
    damping: float = DAMPING
    drift: Tensor | None = None
    share: float = 0.0
    tokens: int = 0
    shrinkage: float | None = None
    held_out: float | None = None

    def aimed(self, factors: Factors) -> "LayerToRound":
        """Return the layer with the weight that gives the outputs aimed at, W + share x W C H^-1 (after GPTAQ, 2504.02692)."""
        if self.drift is None or not self.share:
            return self
        correction = self.drift @ factors.upper.T @ factors.upper
        return replace(self, weight=self.weight + self.share * correction, drift=None)

    @property
    def importance(self) -> Tensor | None:
        """The damped diagonal of H (in,) float32, by which quantizers weight squared errors; None if the layer has no tokens."""
        return damped_importance(self.hessian, self.damping)

    def nearest(self) -> Quantized:
        """Return the weight rounded to nearest by the format's own quantizer."""
        return self.nearest_by(self.importance)

    def nearest_by(self, importance: Tensor | None) -> Quantized:
        """Return the weight rounded to nearest, scales chosen by the `importance` of columns (in,)."""
        return self.form.quantize(self.weight.to(torch.float32), self.group, importance)

    def values(self, quantized: Quantized) -> Tensor:
        """Return the dequantized weight (out, in), in the dtype of the layer."""
        return self.form.dequantize(quantized, self.group).to(self.weight)

    def error(self, quantized: Quantized) -> float:
        """Return tr(dW H dW^T) of the change dW of the weight: twice the squared error of the outputs per token."""
        return weighted_squares(self.values(quantized) - self.weight, self.hessian)


@dataclass
class FormatColumns:
    """Rounds columns to a format's grid for `sweep_columns`.

    It stores the parts and the chosen elements (in, out); where `centers` (in, out) are given, also the values that the elements approximate.
    """

    layer: LayerToRound
    elements: Tensor
    importance: Tensor | None
    centers: Tensor | None = None
    parts: list[Quantized] = field(default_factory=list)
    levels: list[Levels] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._form = self.layer.form.fitted(self.layer.weight.to(torch.float32))

    @property
    def span(self) -> int:
        """Columns that share scales."""
        return self.layer.group

    def round_column(self, j: int, column: Tensor, pruned: Tensor, ahead: Tensor) -> Tensor:
        """Return a column's values on the grid, which is computed at the first column of its span."""
        place = j % self.span
        if place == 0:
            self._find_(j, ahead[: self.span])
        return self.on_grid_(j, column)

    def on_grid_(self, j: int, column: Tensor) -> Tensor:
        """Return the nearest values to the j-th column (out,) on its grid, which must exist, and store their elements."""
        levels, place = self.levels[j // self.span], j % self.span
        if self.centers is not None:
            self.centers[j] = column
        self.elements[j] = levels.elements(column, place)
        return levels.values(self.elements[j], place)

    def values(self, some: slice = slice(None)) -> Tensor:
        """Return the values of some adjacent columns, (columns, out)."""
        start, stop, _ = some.indices(len(self.elements))
        values = torch.empty_like(self.elements[start:stop])
        for span in range(start // self.span, -(-stop // self.span)):
            before = span * self.span
            first, last = max(before, start), min(before + self.span, stop)
            places = torch.arange(first - before, last - before, device=values.device)
            values[first - start : last - start] = self.levels[span].values(self.elements[first:last], places)
        return values

    def _find_(self, start: int, columns: Tensor) -> None:
        values = columns.T.to(torch.float32).contiguous()
        weights = None if self.importance is None else self.importance[start : start + len(columns)]
        self.parts.append(self._form.quantize(values, self.span, weights))
        self.levels.append(GRIDS[self._form.name].read(self.parts[-1], self.span).to(columns))

    def quantized(self) -> Quantized:
        """Return the parts of the whole weight with the chosen elements."""
        grid, spans = GRIDS[self.layer.form.name], self.elements.to("cpu", torch.float32).split(self.span)
        written = [grid.write(part, span.T) for part, span in zip(self.parts, spans, strict=True)]
        return join_parts(written, tuple(self.layer.weight.shape))


def columns_at_once(span: int) -> int:
    """Return the sweep's block size: near 128 columns, and a divisor or multiple of `span`, so that scales use updated weights."""
    if span <= COLUMNS_AT_ONCE:
        return span * (COLUMNS_AT_ONCE // span)
    return next((n for n in range(COLUMNS_AT_ONCE, COLUMNS_AT_ONCE // 2, -1) if span % n == 0), span)
