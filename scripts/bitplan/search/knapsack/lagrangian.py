"""The Lagrangian relaxation of the multiple-choice knapsack problem: a bound on the least damage, and a choice near it.

    max over m >= 0 of  sum_i min_k (damage[i, k] + m extra[i, k]) - m room   <=   the least damage within the room

(Kellerer, Pferschy, Pisinger: Knapsack Problems, 2004, chapter 11.) m is the price of size: damage per unit of it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitplan.search.knapsack.choices import Choices, limit_of, reachable, total

# Differences of damage below this share are rounding.
BOUND_ROUNDING = 1e-12

Table = NDArray[np.float64]
Choice = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Problem:
    """Damage and extra size over the layer's smallest option, (L, K) each, and the room for the sum of the latter."""

    damage: Table
    extra: Table
    room: float


@dataclass(frozen=True, eq=False)
class Dual:
    """The best multiplier (damage per size), its bound, and two choices that attain it on either side of the room.

    No layer is larger in `within` than in `beyond`; the two are equal where there is room for everything.
    """

    multiplier: float
    bound: float
    within: Choice
    beyond: Choice


def problem_of(choices: Choices, budget: float) -> Problem:
    """Return the problem of spending a budget of size, which is at least what the smallest options take."""
    smallest = np.where(choices.allowed, choices.size, np.inf).min(axis=1, keepdims=True)
    return Problem(choices.damage, choices.size - smallest, limit_of(budget) - reachable(choices)[0])


def at(table: Table, choice: Choice) -> Table:
    """Return table[i, choice[i]], (L,)."""
    return table[np.arange(len(choice)), choice]


# -- the bound -------------------------------------------------------------------------------------------------------


def _first_by(first: Table, second: Table) -> Choice:
    """Return the option of each layer with the least of `first`, among equals the least of `second`."""
    return np.where(first == first.min(axis=1, keepdims=True), second, np.inf).argmin(axis=1)


def dual_of(problem: Problem) -> Dual:
    """Return the maximum of the relaxation, by secants across the room.

    Each secant finds a new corner of the lower hull of (size, damage) or ends the search, so there are few.
    """
    damage, extra, room = problem.damage, problem.extra, problem.room
    beyond = _first_by(damage, extra)
    if total(extra, beyond) <= room:
        return Dual(0.0, float(total(damage, beyond)), beyond, beyond)
    within = _first_by(np.where(np.isfinite(damage), extra, np.inf), damage)
    while True:
        saved = total(extra, beyond) - total(extra, within)
        multiplier = max(float((total(damage, within) - total(damage, beyond)) / saved), 0.0)
        costs = damage + multiplier * extra
        corner = costs.argmin(axis=1)
        least, here = total(costs, corner), total(costs, within)
        if least >= here - BOUND_ROUNDING * abs(here):
            swap = at(extra, within) > at(extra, beyond)
            ends = np.where(swap, beyond, within), np.where(swap, within, beyond)
            return Dual(multiplier, float(least - multiplier * room), *ends)
        within, beyond = (corner, beyond) if total(extra, corner) <= room else (within, corner)


# -- a choice near it ------------------------------------------------------------------------------------------------


def _that_fit(sizes: Table, order: Choice, room: float) -> Choice:
    """Return the members of `order` that fit into the room when each is taken as it comes, or left; (n,).

    Whole runs are taken at once. With sizes that fall along the order, each run at least halves the room.
    """
    taken = [order[:0]]
    while (order := order[sizes[order] <= room]).size:
        used = np.cumsum(sizes[order])
        count = int(np.searchsorted(used, room, side="right"))
        taken.append(order[:count])
        room, order = room - used[count - 1], order[count:]
    return np.concatenate(taken)


def _split(problem: Problem, dual: Dual) -> tuple[Choice, Choice | None]:
    """Return the choice on the way from `within` to `beyond` that leaves little room, and one a single layer beyond."""
    step = at(problem.extra, dual.beyond) - at(problem.extra, dual.within)
    order = np.argsort(-step, kind="stable")[: np.count_nonzero(step)]
    taken = _that_fit(step, order, problem.room - total(problem.extra, dual.within))
    split = dual.within.copy()
    split[taken] = dual.beyond[taken]
    left = order[~np.isin(order, taken)]
    if not left.size:
        return split, None
    over = split.copy()
    over[left[-1]] = dual.beyond[left[-1]]
    return split, over


def _changes(problem: Problem, choice: Choice) -> tuple[Table, Table]:
    """Return what each single change of an option adds to the damage and to the size, (L, K) each."""
    return (
        problem.damage - at(problem.damage, choice)[:, None],
        problem.extra - at(problem.extra, choice)[:, None],
    )


def _brought_within(problem: Problem, choice: Choice) -> Choice | None:
    """Return the choice after the single change to within the room with the least damage, or None."""
    worse, larger = _changes(problem, choice)
    worse = np.where(larger <= problem.room - total(problem.extra, choice), worse, np.inf)
    layer, option = np.unravel_index(worse.argmin(), worse.shape)
    if not np.isfinite(worse[layer, option]):
        return None
    changed = choice.copy()
    changed[layer] = option
    return changed


def _filled(problem: Problem, choice: Choice) -> Choice:
    """Return the choice after changes that lower the damage and fit, those first that gain most for their size."""
    choice = choice.copy()
    while True:
        room = problem.room - total(problem.extra, choice)
        worse, larger = _changes(problem, choice)
        gain = np.where((worse < 0) & (larger <= room), -worse, 0.0)
        with np.errstate(over="ignore"):
            rate = np.where(gain > 0, gain / np.maximum(larger, np.finfo(np.float64).tiny), 0.0)
        option = rate.argmax(axis=1)
        best = at(rate, option)
        order = np.argsort(-best, kind="stable")[: np.count_nonzero(best)]
        if not order.size:
            return choice
        taken = _that_fit(np.maximum(at(larger, option), 0), order, room)
        choice[taken] = option[taken]


def good_choice(problem: Problem, dual: Dual) -> Choice:
    """Return a choice within the room whose damage is near the bound."""
    below, over = _split(problem, dual)
    back = None if over is None else _brought_within(problem, over)
    starts = [below] if back is None else [below, back]
    return min((_filled(problem, start) for start in starts), key=lambda choice: total(problem.damage, choice))
