"""Whether error feedback pays on tokens that it has not seen: each half of the text rounds a layer, the other half judges."""

from dataclasses import replace

from bitplan.formats.base import Quantized
from bitplan.models.devices import return_free_memory
from bitplan.rounding.columns import LayerToRound, damped_importance
from bitplan.rounding.feedback import descend_layer_, sweep_layer
from bitplan.rounding.sweep import damped_factors_
from bitplan.statistics.hessian import InputMoments
from bitplan.statistics.shrinkage import HalvedMoments

# With this many tokens for each column, feedback was never worse on the other half.
TOKENS_PER_COLUMN = 2


def needs_judging(layer: LayerToRound, moments: HalvedMoments) -> bool:
    """Return whether a layer has so few tokens that feedback may fit them alone."""
    return moments.tokens < TOKENS_PER_COLUMN * layer.weight.shape[1]


def held_out_ratio(layer: LayerToRound, moments: HalvedMoments, descents: int) -> float | None:
    """Return the error tr(dW H dW^T) of feedback relative to nearest, rounded under H of one half and measured under that of the other.

    Both ways are summed; rounding aims at the weight itself, and the layer's own H is not read. None if a half has no tokens or no
    Cholesky factor. Beside the moments, one matrix (in, in) is in memory at a time.
    """
    halves = moments.first, moments.second
    if not all(half.tokens for half in halves):
        return None
    errors = []
    for own, other in (halves, halves[::-1]):
        rounded = _rounded_for(layer, moments, own, descents)
        if rounded is None:
            return None
        judge = replace(layer, hessian=other.hessian)
        errors.append([judge.error(each) for each in rounded])
        del judge
        return_free_memory()  # small pieces of the sweep lie between kept ones
    feedback, nearest = (sum(column) for column in zip(*errors, strict=True))
    return feedback / nearest if nearest > 0 else None


def _rounded_for(
    layer: LayerToRound, moments: HalvedMoments, half: InputMoments, descents: int
) -> tuple[Quantized, Quantized] | None:
    """Return the weight rounded with feedback and to nearest under H of one half; None if it has no Cholesky factor.

    H is computed twice, because its factors take its memory.
    """
    hessian = moments.shrunk_half(half)
    importance = damped_importance(hessian, layer.damping)
    handed_over = [damped_factors_(hessian, layer.damping)]
    del hessian
    if handed_over[0] is None:
        return None
    columns = sweep_layer(layer, handed_over.pop(), importance)
    descend_layer_(columns, moments.shrunk_half(half), descents)
    return columns.quantized(), layer.nearest_by(importance)
