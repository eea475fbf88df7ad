"""Which width each input channel gets, under an average of the widths that is held to within one channel."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bitplan.search.knapsack.choices import Choices
from bitplan.search.knapsack.exact import optimal as optimal_choice

BIT_OPTIONS = (2, 3, 4, 6, 8)
BISECTIONS = 60

Scores = NDArray[np.float64]
Widths = NDArray[np.int64]
# allocate(scores (n,), errors (n, K), options (K,), target average) -> widths (n,)
Allocate = Callable[[Scores, NDArray[np.float64], Sequence[int], float], Widths]


def even_quantiles(options: Sequence[int]) -> tuple[float, ...]:
    """Return the quantiles that give every width the same share: .2, .4, .6, .8 for five."""
    return tuple(k / len(options) for k in range(1, len(options)))


def _counts(channels: int, quantiles: Sequence[float], shift: float) -> list[int]:
    """Return how many channels lie below each quantile, all moved by `shift`."""
    return [round(channels * min(1.0, max(0.0, quantile + shift))) for quantile in quantiles]


def _by_rank(ranks: NDArray[np.intp], counts: Sequence[int], options: Sequence[int]) -> Widths:
    """Return for each rank the option of the range of counts that it lies in."""
    return np.asarray(options)[np.searchsorted(np.asarray(counts), ranks, side="right")]


def ranks_of(scores: Scores) -> NDArray[np.intp]:
    """Return each channel's place from the least important, 0; of equal ones the first comes first."""
    ranks = np.empty(len(scores), dtype=np.intp)
    ranks[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    return ranks


def by_quantile(
    scores: Scores, options: Sequence[int], target: float | None, quantiles: Sequence[float] | None = None
) -> Widths:
    """Return the widths by quantiles of the scores: the least important share gets the first option, and so on.

    Without a target the quantiles stand as they are (even ones average 4.6 bits over 2, 3, 4, 6, 8); with one all are moved by the
    same amount until the average is at most the target, and single channels at the borders fill what is left.
    """
    ranks, marks = ranks_of(scores), quantiles or even_quantiles(options)
    if target is None:
        return _by_rank(ranks, _counts(len(scores), marks, 0.0), options)
    room, low, high = _room(target, len(scores)), -1.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = _by_rank(ranks, _counts(len(scores), marks, middle), options).sum() <= room
        low, high = (low, middle) if fits else (middle, high)
    widths = _by_rank(ranks, _counts(len(scores), marks, high), options)
    # The most important channel of an option is raised, of the widest option first: borders stay borders.
    order = np.arange(len(options) - 1) + ranks[:, None] / len(ranks)
    return _filled(widths, order, options, room)


def _room(target: float, channels: int) -> float:
    """Return the sum of widths that a target allows; what is over by rounding of floats fits."""
    return target * channels * (1 + 1e-12)


def _filled(widths: Widths, values: NDArray[np.float64], options: Sequence[int], room: float) -> Widths:
    """Return the widths with single channels raised by one option while the sum stays within `room`.

    values (n, K - 1): what each channel's step from option k to k + 1 is worth; the most valuable one that fits comes first.
    """
    filled, steps = widths.copy(), np.append(np.diff(options), 0)
    while True:
        held = np.searchsorted(options, filled)
        fits = (steps[held] > 0) & (steps[held] <= room - filled.sum())
        if not fits.any():
            return filled
        value = values[np.arange(len(filled)), np.minimum(held, values.shape[1] - 1)]
        best = np.where(fits, value, -np.inf).argmax()
        filled[best] += steps[held[best]]


def by_budget(scores: Scores, options: Sequence[int], target: float) -> Widths:
    """Return the widths by marginal gain: every channel starts at the first option, and the step that lowers score x 4^-b most per bit
    comes first, while the average stays within the target. Sorting is all the work: O(n log n).
    """
    widths, error = np.asarray(options, dtype=np.int64), 4.0 ** -np.asarray(options, dtype=np.float64)
    per_bit = -np.diff(error) / np.diff(widths)  # (K - 1,), falling: 4^-b is convex
    gains = scores[:, None] * per_bit
    cost = np.tile(np.diff(widths), len(scores))
    order = np.argsort(-gains, axis=None, kind="stable")
    room = _room(target, len(scores)) - widths[0] * len(scores)
    taken = order[: np.searchsorted(np.cumsum(cost[order]), room, side="right")]
    steps = np.bincount(taken // len(per_bit), minlength=len(scores))
    return _filled(widths[steps], gains, options, _room(target, len(scores)))


def by_optimum(scores: Scores, errors: NDArray[np.float64], options: Sequence[int], target: float) -> Widths:
    """Return the widths that minimize sum_j score_j error_j(b) under the target, exactly.

    errors (n, K): the squared error of each channel in each option.
    """
    channels = len(scores)
    names = tuple(map(str, range(channels)))
    sizes = np.tile(np.asarray(options, dtype=np.float64), (channels, 1))
    table = Choices(names, tuple(map(str, options)), scores[:, None] * errors, sizes)
    chosen = optimal_choice(table, _room(target, channels)).choice
    return np.asarray(options, dtype=np.int64)[chosen]


METHODS: Mapping[str, Allocate] = {
    "quantile": lambda scores, errors, options, target: by_quantile(scores, options, target),
    "budget": lambda scores, errors, options, target: by_budget(scores, options, target),
    "optimal": by_optimum,
}
