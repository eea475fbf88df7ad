"""One layer rounded: column after column on its format's grid, each column's error handed to those after it (GPTQ, 2210.17323).

The scales of a span of columns are chosen by the format's own quantizer when the sweep reaches it, from the weights as they then are.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from bitplan.formats.base import Quantized
from bitplan.rounding.columns import FormatColumns, LayerToRound, columns_at_once
from bitplan.rounding.descent import descend_
from bitplan.rounding.sweep import Factors, Pruning, check_hessian, damped_factors, sweep_columns

log = logging.getLogger(__name__)
NEAREST, FEEDBACK, TUNED = "nearest", "feedback", "tuned"
MOST_DAMPING = 1.0
LESS = 0.1  # of the damping; no inverse is taken in a descent
DESCENTS = 2
REFERENCE_SHARE = 0.5  # of the way to the outputs that the reference model gives


@dataclass(frozen=True)
class RoundedWeight:
    """A rounded weight: its parts, how it was rounded, and both errors (`LayerToRound.error`).

    `damping` is what the factors needed; None where nothing was factorized. `why` says why it is not as asked; "" where it is. `columns`
    are what error feedback has found; None for rounding to nearest.
    """

    quantized: Quantized
    rounding: str
    error: float
    error_nearest: float
    damping: float | None = None
    why: str = ""
    columns: FormatColumns | None = None


def feedback(layer: LayerToRound, factors: Factors, descents: int = 0) -> FormatColumns:
    """Return the columns of the weight rounded with error feedback through `factors` of its Hessian, then descended on so often."""
    elements = torch.empty_like(layer.weight.T, memory_format=torch.contiguous_format)
    columns = FormatColumns(layer, elements, layer.importance)
    sweep_columns(layer.weight, factors.upper, Pruning(), columns, columns_at_once(layer.group))
    if descents:
        hessian = layer.hessian.clone()
        hessian.diagonal().add_(LESS * layer.damping * hessian.diagonal().mean())
        descend_(columns, layer.weight, hessian, descents)
    return columns


def _dampings(first: float) -> Iterator[float]:
    """Yield the damping asked for, and ten times as much until it is over the mean of the diagonal."""
    damping = first
    while damping <= MOST_DAMPING:
        yield damping
        damping = max(10 * damping, 1e-6)


def round_layer(layer: LayerToRound, rounding: str = FEEDBACK, descents: int = DESCENTS) -> RoundedWeight:
    """Return the weight rounded as asked, with so many descents after the sweep, or to nearest where that is not possible or not better, which the log says.

    Raises `UserError` for inputs that are NaN or infinite.
    """
    check_hessian(layer.hessian)
    nearest = layer.nearest()
    error = layer.error(nearest)
    plain = RoundedWeight(nearest, NEAREST, error, error)
    return plain if rounding == NEAREST else _better(layer, plain, descents)


def _better(layer: LayerToRound, plain: RoundedWeight, descents: int) -> RoundedWeight:
    if not layer.hessian.diagonal().any():
        return _kept(layer, plain, "no token reached it")
    found = ((damping, damped_factors(layer.hessian, damping)) for damping in _dampings(layer.damping))
    damping, factors = next((pair for pair in found if pair[1] is not None), (None, None))
    if factors is None:
        return _kept(layer, plain, "its Hessian is not positive definite, however much it is damped")
    if damping > layer.damping:
        log.warning("%s: its Hessian is not positive definite; damped by %g of its mean diagonal", layer.name, damping)
    layer = layer.aimed(factors)
    plain = replace(plain, error=(error := layer.error(plain.quantized)), error_nearest=error)
    columns = feedback(layer, factors, descents)
    made = columns.quantized()
    error = layer.error(made)
    if not error <= plain.error:
        return _kept(layer, plain, f"error feedback gives a layer error of {error:.4g}, nearest {plain.error:.4g}")
    return RoundedWeight(made, FEEDBACK, error, plain.error, damping, columns=columns)


def tuned(made: RoundedWeight) -> RoundedWeight:
    """Return what error feedback has made of a layer with the elements that its columns have by now."""
    quantized = made.columns.quantized()
    return replace(made, quantized=quantized, rounding=TUNED, error=made.columns.layer.error(quantized))


def _kept(layer: LayerToRound, plain: RoundedWeight, why: str) -> RoundedWeight:
    log.warning("%s: rounded to nearest: %s", layer.name, why)
    return RoundedWeight(plain.quantized, NEAREST, plain.error, plain.error, why=why)


# The name of a way of rounding, and what it is, for help and messages.
ROUNDINGS: Mapping[str, str] = MappingProxyType(
    {
        NEAREST: "each weight to its nearest code",
        FEEDBACK: "each column's error is handed to the columns after it",
        TUNED: "the codes of a block tuned together, from those of feedback on",
    }
)
