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
        diagonal = self.hessian.diagonal()
        mean = diagonal.mean()
        return (diagonal + self.damping * mean).to("cpu", torch.float32) if mean > 0 else None

    def nearest(self) -> Quantized:
        """Return the weight rounded to nearest by the format's own quantizer."""
        return self.form.quantize(self.weight.to(torch.float32), self.group, self.importance)

    def values(self, quantized: Quantized) -> Tensor:
        """Return the dequantized weight (out, in), in the dtype of the layer."""
        return self.form.dequantize(quantized, self.group).to(self.weight)

    def error(self, quantized: Quantized) -> float:
        """Return tr(dW H dW^T) of the change dW of the weight: twice the squared error of the outputs per token."""
        return weighted_squares(self.values(quantized) - self.weight, self.hessian)


@dataclass
class FormatColumns:
    """Rounds columns to a format's grid for `sweep_columns`.

    It stores the parts, the chosen elements (in, out), and the values that these approximate, `centers` (in, out).
    """

    layer: LayerToRound
    elements: Tensor
    importance: Tensor | None
    parts: list[Quantized] = field(default_factory=list)
    levels: list[Levels] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.centers = torch.empty_like(self.elements)
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
        self.centers[j] = column
        self.elements[j] = levels.elements(column, place)
        return levels.values(self.elements[j], place)

    def values(self) -> Tensor:
        """Return the values of all columns, (in, out)."""
        spans = zip(self.levels, self.elements.split(self.span), strict=True)
        return torch.cat(
            [levels.values(elements, torch.arange(len(elements), device=elements.device)) for levels, elements in spans]
        )

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
