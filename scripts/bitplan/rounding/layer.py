"""One layer rounded: column after column on its format's grid, each column's error handed to those after it (GPTQ, 2210.17323).

The scales of a span of columns are chosen by the format's own quantizer when the sweep reaches it, from the weights as they then are.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from bitplan.formats.base import Format, Quantized
from bitplan.rounding.grids import GRIDS, joined
from bitplan.rounding.levels import Levels
from bitplan.sparsegpt.sweep import Factors, Pruning, check_hessian, damped_factors, sweep_columns

log = logging.getLogger(__name__)
NEAREST, FEEDBACK = "nearest", "feedback"
DAMPING = 0.01
MOST_DAMPING = 1.0
COLUMNS_AT_ONCE = 128


@dataclass(frozen=True)
class LayerToRound:
    """What is rounded: a weight (out, in) float32 or float64, H (in, in) of its inputs in the same dtype, and the format's name and block.

    `damping` is added to the diagonal of H in shares of its mean.
    """

    name: str
    weight: Tensor
    hessian: Tensor
    form: Format
    group: int
    damping: float = DAMPING

    @property
    def importance(self) -> Tensor | None:
        """The damped diagonal of H (in,) float32, by which quantizers weigh squared errors; None where no token was seen."""
        diagonal = self.hessian.diagonal()
        mean = diagonal.mean()
        return (diagonal + self.damping * mean).to("cpu", torch.float32) if mean > 0 else None

    def nearest(self) -> Quantized:
        """Return the weight as the format's own quantizer rounds it."""
        return self.form.quantize(self.weight.to(torch.float32), self.group, self.importance)

    def values(self, quantized: Quantized) -> Tensor:
        """Return the weight (out, in) that parts stand for, in the dtype of the layer."""
        return self.form.dequantize(quantized, self.group).to(self.weight)

    def error(self, quantized: Quantized) -> float:
        """Return tr(dW H dW^T) of the change dW of the weight: twice the squared error of the outputs per token."""
        change = self.values(quantized) - self.weight
        return (change @ self.hessian).mul_(change).sum(dtype=torch.float64).item()


@dataclass(frozen=True)
class RoundedWeight:
    """A rounded weight: its parts, how it was rounded, and both errors (`LayerToRound.error`).

    `damping` is what the factors needed; None where nothing was factorized. `why` says why it is not as asked; "" where it is.
    """

    quantized: Quantized
    rounding: str
    error: float
    error_nearest: float
    damping: float | None = None
    why: str = ""


@dataclass
class FormatColumns:
    """Rounds columns to a format's grid for `sweep_columns`; keeps the parts and the elements (in, out) that it has found."""

    layer: LayerToRound
    elements: Tensor
    importance: Tensor | None
    parts: list[Quantized] = field(default_factory=list)
    levels: list[Levels] = field(default_factory=list)

    @property
    def span(self) -> int:
        """Columns that share scales."""
        return self.layer.group

    def rounded(self, j: int, column: Tensor, pruned: Tensor, ahead: Tensor) -> Tensor:
        """Return a column's values on the grid, which is found when its first column comes up."""
        place = j % self.span
        if place == 0:
            self._find_(j, ahead[: self.span])
        levels = self.levels[-1]
        self.elements[j] = levels.elements(column, place)
        return levels.values(self.elements[j], place)

    def _find_(self, start: int, columns: Tensor) -> None:
        form, values = self.layer.form, columns.T.to(torch.float32).contiguous()
        weights = None if self.importance is None else self.importance[start : start + len(columns)]
        self.parts.append(form.quantize(values, self.span, weights))
        self.levels.append(GRIDS[form.name].read(self.parts[-1], self.span).to(columns))

    def quantized(self) -> Quantized:
        """Return the parts of the whole weight with the elements that were found."""
        grid, spans = GRIDS[self.layer.form.name], self.elements.to("cpu", torch.float32).split(self.span)
        written = [grid.write(part, span.T) for part, span in zip(self.parts, spans, strict=True)]
        return joined(written, tuple(self.layer.weight.shape))


def columns_at_once(span: int) -> int:
    """Return the sweep's block: near 128 columns, and a divisor or a multiple of `span`, so that scales see weights up to date."""
    if span <= COLUMNS_AT_ONCE:
        return span * (COLUMNS_AT_ONCE // span)
    return next((n for n in range(COLUMNS_AT_ONCE, COLUMNS_AT_ONCE // 2, -1) if span % n == 0), span)


def feedback(layer: LayerToRound, factors: Factors) -> Quantized:
    """Return the weight rounded with error feedback through `factors` of its Hessian."""
    elements = torch.empty_like(layer.weight.T, memory_format=torch.contiguous_format)
    columns = FormatColumns(layer, elements, layer.importance)
    sweep_columns(layer.weight, factors.upper, Pruning(), columns, columns_at_once(layer.group))
    return columns.quantized()


def _dampings(first: float) -> Iterator[float]:
    """Yield the damping asked for, and ten times as much until it is over the mean of the diagonal."""
    damping = first
    while damping <= MOST_DAMPING:
        yield damping
        damping = max(10 * damping, 1e-6)


def round_layer(layer: LayerToRound, rounding: str = FEEDBACK) -> RoundedWeight:
    """Return the weight rounded as asked, or to nearest where that is not possible or not better, which the log says.

    Raises `UserError` for inputs that are NaN or infinite.
    """
    check_hessian(layer.hessian)
    nearest = layer.nearest()
    error = layer.error(nearest)
    plain = RoundedWeight(nearest, NEAREST, error, error)
    return plain if rounding == NEAREST else _better(layer, plain)


def _better(layer: LayerToRound, plain: RoundedWeight) -> RoundedWeight:
    if not layer.hessian.diagonal().any():
        return _kept(layer, plain, "no token reached it")
    found = ((damping, damped_factors(layer.hessian, damping)) for damping in _dampings(layer.damping))
    damping, factors = next((pair for pair in found if pair[1] is not None), (None, None))
    if factors is None:
        return _kept(layer, plain, "its Hessian is not positive definite, however much it is damped")
    if damping > layer.damping:
        log.warning("%s: its Hessian is not positive definite; damped by %g of its mean diagonal", layer.name, damping)
    made = feedback(layer, factors)
    error = layer.error(made)
    if not error <= plain.error:
        return _kept(layer, plain, f"error feedback gives a layer error of {error:.4g}, nearest {plain.error:.4g}")
    return RoundedWeight(made, FEEDBACK, error, plain.error, damping)


def _kept(layer: LayerToRound, plain: RoundedWeight, why: str) -> RoundedWeight:
    log.warning("%s: rounded to nearest: %s", layer.name, why)
    return RoundedWeight(plain.quantized, NEAREST, plain.error, plain.error, why=why)


# The name of a way of rounding, and what it is, for help and messages.
ROUNDINGS: Mapping[str, str] = MappingProxyType(
    {NEAREST: "each weight to its nearest code", FEEDBACK: "each column's error is handed to the columns after it"}
)
