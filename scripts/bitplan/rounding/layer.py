"""Rounds one layer as requested; to nearest where error feedback is not possible or gives a higher error, and then says why."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from bitplan.formats.base import Quantized
from bitplan.rounding.columns import FormatColumns, LayerToRound
from bitplan.rounding.feedback import round_with_feedback
from bitplan.rounding.grids import GRIDS
from bitplan.rounding.sweep import check_hessian, damped_factors

log = logging.getLogger(__name__)
NEAREST, FEEDBACK, TUNED = "nearest", "feedback", "tuned"
MOST_DAMPING = 1.0
DESCENTS = 2
REFERENCE_SHARE = 0.5  # of the way to the outputs that the reference model gives


@dataclass(frozen=True)
class RoundedWeight:
    """A rounded weight: its parts, how it was rounded, and both errors (`LayerToRound.error`).

    `damping` is the damping that the factorization needed; None without one. `why` is the reason if the requested method was not
    used, else "". `columns` is the state of error feedback, if it is to be tuned.
    """

    quantized: Quantized
    rounding: str
    error: float
    error_nearest: float
    damping: float | None = None
    why: str = ""
    columns: FormatColumns | None = None


def _dampings(first: float) -> Iterator[float]:
    """Yield the requested damping, then ten times as much each time, up to `MOST_DAMPING`."""
    damping = first
    while damping <= MOST_DAMPING:
        yield damping
        damping = max(10 * damping, 1e-6)


def round_layer(layer: LayerToRound, rounding: str = FEEDBACK, descents: int = DESCENTS) -> RoundedWeight:
    """Return the weight rounded by the requested method, with `descents` descents after the sweep.

    If that is not possible or not better, the weight is rounded to nearest, and the log says so. Raises `UserError` for inputs
    that are NaN or infinite.
    """
    check_hessian(layer.hessian)
    nearest = layer.nearest()
    if rounding == NEAREST:
        return _nearest(nearest, layer.error(nearest))
    if layer.form.name not in GRIDS:
        return _give_up(layer, nearest, f"{layer.form.name} has no grid on which single weights can be chosen")
    return _better(layer, nearest, descents, rounding == TUNED)


def _better(layer: LayerToRound, nearest: Quantized, descents: int, tunable: bool) -> RoundedWeight:
    if not layer.hessian.diagonal().any():
        return _give_up(layer, nearest, "no token reached it")
    if layer.held_out is not None and not layer.held_out < 1:
        why = f"on tokens held out of {layer.tokens}, error feedback has {layer.held_out:.2f} of its error"
        return _give_up(layer, nearest, why)
    attempts = ((damping, damped_factors(layer.hessian, damping)) for damping in _dampings(layer.damping))
    damping, factors = next((pair for pair in attempts if pair[1] is not None), (None, None))
    if factors is None:
        return _give_up(layer, nearest, "its Hessian is not positive definite, however much it is damped")
    if damping > layer.damping:
        log.warning("%s: the Hessian is not positive definite; damped by %g of its mean diagonal", layer.name, damping)
    layer = layer.aimed(factors)
    columns = round_with_feedback(layer, factors, descents, tunable)
    quantized = columns.quantized()
    error, error_nearest = layer.error(quantized), layer.error(nearest)
    if not error <= error_nearest:
        why = f"error feedback gives a layer error of {error:.4g}, nearest {error_nearest:.4g}"
        return _give_up(layer, nearest, why)
    return RoundedWeight(quantized, FEEDBACK, error, error_nearest, damping, columns=columns if tunable else None)


def apply_tuning(rounded: RoundedWeight) -> RoundedWeight:
    """Return the rounded weight with the elements that tuning left in its columns."""
    quantized = rounded.columns.quantized()
    return replace(rounded, quantized=quantized, rounding=TUNED, error=rounded.columns.layer.error(quantized))


def _nearest(quantized: Quantized, error: float, why: str = "") -> RoundedWeight:
    return RoundedWeight(quantized, NEAREST, error, error, why=why)


def _give_up(layer: LayerToRound, nearest: Quantized, why: str) -> RoundedWeight:
    log.warning("%s: rounded to nearest: %s", layer.name, why)
    return _nearest(nearest, layer.error(nearest), why)


# {rounding method: description}, for help and messages.
ROUNDINGS: Mapping[str, str] = MappingProxyType(
    {
        NEAREST: "each weight to its nearest code",
        FEEDBACK: "each column's error is handed to the columns after it",
        TUNED: "the codes of a block tuned together, from those of feedback on",
    }
)
