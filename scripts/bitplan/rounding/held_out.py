"""Whether error feedback pays on tokens that it has not seen: each half of the text rounds a layer, the other half judges."""

from dataclasses import replace

from torch import Tensor

from bitplan.rounding.columns import LayerToRound
from bitplan.rounding.feedback import round_with_feedback
from bitplan.rounding.sweep import damped_factors

# With this many tokens for each column, feedback was never worse on the other half.
TOKENS_PER_COLUMN = 2


def needs_judging(layer: LayerToRound) -> bool:
    """Return whether a layer has so few tokens that feedback may fit them alone."""
    return layer.moments is not None and layer.moments.tokens < TOKENS_PER_COLUMN * layer.weight.shape[1]


def held_out_ratio(layer: LayerToRound, descents: int) -> float | None:
    """Return the error tr(dW H dW^T) of feedback relative to nearest, rounded under H of one half and measured under that of the other.

    Both ways are summed; rounding aims at the weight itself. None if a half has no tokens or no Cholesky factor.
    """
    halves = layer.moments.first, layer.moments.second
    if not all(half.tokens for half in halves):
        return None
    plain = replace(layer, cross=None, moments=None)
    pairs = zip(layer.moments.shrunk_halves, reversed([half.hessian for half in halves]), strict=True)
    errors = [_errors(replace(plain, hessian=own), other, descents) for own, other in pairs]
    if None in errors:
        return None
    feedback, nearest = (sum(column) for column in zip(*errors, strict=True))
    return feedback / nearest if nearest > 0 else None


def _errors(layer: LayerToRound, other: Tensor, descents: int) -> tuple[float, float] | None:
    """Return the errors of feedback and of nearest under another H."""
    factors = damped_factors(layer.hessian, layer.damping)
    if factors is None:
        return None
    judge = replace(layer, hessian=other)
    feedback = round_with_feedback(layer, factors, descents).quantized()
    return judge.error(feedback), judge.error(layer.nearest())
