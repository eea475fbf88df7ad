"""The least total damage within a budget of size, exactly: the multiple-choice knapsack problem.

    minimize sum_i damage[i, c_i]  subject to  sum_i size[i, c_i] <= budget

Two options and one step of size: sorting. Otherwise the Lagrangian dual gives a bound, reduced costs drop the options
that no better choice can hold, and dynamic programming over the rest finishes (Kellerer, Pferschy, Pisinger: Knapsack
Problems, 2004, chapter 11).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitplan.search.choices import Choices, check_budget, limit_of, reachable, total, total_damage, total_size

# Differences of damage below these shares are rounding: of one step of dynamic programming, and of a bound.
STEP_ROUNDING, BOUND_ROUNDING = 1e-13, 1e-12
MOST_STATES = 50_000

Table = NDArray[np.float64]
Choice = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Solution:
    """The best choice (L,), its damage and size, and the Lagrangian bound below which no damage can be.

    `gap` is (damage - lower_bound) / lower_bound. `exact` says that the search of what lies between the two was
    exhaustive: the gap of an exact solution is the room that indivisible steps leave, not a doubt.
    """

    choice: Choice
    damage: float
    size: float
    lower_bound: float
    gap: float
    exact: bool


@dataclass(frozen=True, eq=False)
class _Problem:
    """Damage and extra size over the layer's smallest option, (L, K) each, and the room for the sum of the latter."""

    damage: Table
    extra: Table
    room: float


@dataclass(frozen=True, eq=False)
class _Dual:
    """The best multiplier (damage per size), its bound, and the choices on either side of the budget."""

    multiplier: float
    bound: float
    within: Choice
    beyond: Choice


def _problem(choices: Choices, budget: float) -> _Problem:
    smallest = np.where(choices.allowed, choices.size, np.inf).min(axis=1, keepdims=True)
    return _Problem(choices.damage, choices.size - smallest, limit_of(budget) - reachable(choices)[0])


# -- two options -----------------------------------------------------------------------------------------------------


def can_sort(choices: Choices) -> bool:
    """Return whether each layer has two options and all layers the same step between them."""
    if len(choices.options) != 2:
        return False
    steps = np.abs(choices.size[:, 1] - choices.size[:, 0])
    return bool(steps[0] > 0 and np.all(steps == steps[0]))


def _by_sorting(choices: Choices, problem: _Problem) -> Choice:
    """Give the larger option to the layers that gain most by it; among equal gains to the first one in the model."""
    rows, large = np.arange(len(choices.layers)), choices.size.argmax(axis=1)
    # An option that is not allowed is infinitely bad: a layer that has no smaller one comes first.
    gain = problem.damage[rows, 1 - large] - problem.damage[rows, large]
    forced = np.isposinf(gain)
    step = abs(choices.size[0, 1] - choices.size[0, 0])
    count = forced.sum() + int(min(max(problem.room, 0) // step, len(rows)))
    first = np.argsort(-gain, kind="stable")[:count]
    return np.where(np.isin(rows, first) & (gain > 0), large, 1 - large)


# -- the bound -------------------------------------------------------------------------------------------------------


def _first_by(first: Table, second: Table) -> Choice:
    """Return the option of each layer with the least of `first`, among equals the least of `second`."""
    return np.where(first == first.min(axis=1, keepdims=True), second, np.inf).argmin(axis=1)


def _dual(problem: _Problem) -> _Dual:
    """Return the maximum over m >= 0 of sum_i min_k (damage + m extra) - m room, by secants across the budget.

    Each secant finds a new corner of the lower hull of (size, damage) or ends the search, so there are few.
    """
    damage, extra, room = problem.damage, problem.extra, problem.room
    beyond = _first_by(damage, extra)
    if total(extra, beyond) <= room:
        return _Dual(0.0, float(total(damage, beyond)), beyond, beyond)
    within = _first_by(np.where(np.isfinite(damage), extra, np.inf), damage)
    while True:
        saved = total(extra, beyond) - total(extra, within)
        multiplier = max(float((total(damage, within) - total(damage, beyond)) / saved), 0.0)
        costs = damage + multiplier * extra
        corner = costs.argmin(axis=1)
        least, here = total(costs, corner), total(costs, within)
        if least >= here - BOUND_ROUNDING * abs(here):
            return _Dual(multiplier, float(least - multiplier * room), within, beyond)
        within, beyond = (corner, beyond) if total(extra, corner) <= room else (within, corner)


# -- a good choice ---------------------------------------------------------------------------------------------------


def _changes(problem: _Problem, choice: Choice) -> tuple[Table, Table]:
    """Return what each single change of an option adds to the damage and to the size, (L, K) each."""
    rows = np.arange(len(choice))
    return (
        problem.damage - problem.damage[rows, choice][:, None],
        problem.extra - problem.extra[rows, choice][:, None],
    )


def _changed(problem: _Problem, choice: Choice, only_better: bool) -> Choice | None:
    """Return the choice after the single change to within the budget with the least damage, or None."""
    worse, larger = _changes(problem, choice)
    worse = np.where(larger <= problem.room - total(problem.extra, choice), worse, np.inf)
    layer, option = np.unravel_index(worse.argmin(), worse.shape)
    if not worse[layer, option] < (0 if only_better else np.inf):
        return None
    changed = choice.copy()
    changed[layer] = option
    return changed


def _filled(problem: _Problem, choice: Choice) -> Choice:
    """Return the choice after the best single change that fits, again and again until none lowers the damage."""
    while (changed := _changed(problem, choice, only_better=True)) is not None:
        choice = changed
    return choice


def _good(problem: _Problem, dual: _Dual) -> Choice:
    """Return the better of both sides of the budget, brought within it and filled."""
    below = _changed(problem, dual.beyond, only_better=False)
    starts = [dual.within] if below is None else [dual.within, below]
    return min((_filled(problem, start) for start in starts), key=lambda choice: total(problem.damage, choice))


# -- what is left between the bound and the good choice --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _States:
    """Partial choices: extra size used, sum of reduced costs, and where each came from: a state and an option."""

    used: Table
    cost: Table
    parent: Choice
    option: Choice


@dataclass(frozen=True, eq=False)
class _Core:
    """What a better choice than the one known may hold: `most` is how far its costs may lie above the bound.

    `reduced` (L, K) is by how much an option is worse than the layer's best at the multiplier's price of size; inf
    where no better choice can have it. `order` lists the layers with several options left; `smallest` and `largest` are
    the extra sizes that the layers after each of them can still add.
    """

    problem: _Problem
    multiplier: float
    reduced: Table
    most: float
    order: Choice
    smallest: Table
    largest: Table


def _rest(extra: Table) -> Table:
    """Return for each place the sum of what comes after it."""
    return np.append(np.cumsum(extra[::-1])[::-1], 0.0)[1:]


def _core(problem: _Problem, dual: _Dual, damage: float) -> _Core:
    """Return what a choice with less than this damage may hold."""
    most = damage - dual.bound + BOUND_ROUNDING * damage
    costs = problem.damage + dual.multiplier * problem.extra
    reduced = costs - costs.min(axis=1, keepdims=True)
    is_open = reduced <= most
    several = np.flatnonzero(is_open.sum(axis=1) > 1)
    # The layers whose second option is dearest come first: the states stay few for longest.
    second = np.sort(reduced[several], axis=1)[:, :2].max(axis=1)
    order = several[np.argsort(-second, kind="stable")]
    largest = np.where(is_open, problem.extra, -np.inf).max(axis=1)[order]
    smallest = np.where(is_open, problem.extra, np.inf).min(axis=1)[order]
    reduced = np.where(is_open, reduced, np.inf)
    return _Core(problem, dual.multiplier, reduced, most, order, _rest(smallest), _rest(largest))


def _undominated(states: _States, multiplier: float, rounding: float) -> _States:
    """Return the states that no smaller one matches in damage, by size."""
    damage = states.cost - multiplier * states.used
    order = np.lexsort((damage, states.used))
    least = np.minimum.accumulate(damage[order])
    # What was kept lies a step of rounding below what was kept before it; the first one always stays.
    keep = order[np.concatenate(([True], damage[order][1:] < least[:-1] - rounding))]
    return _States(states.used[keep], states.cost[keep], states.parent[keep], states.option[keep])


def _extended(core: _Core, layer: int, states: _States) -> _States:
    """Return each state with each option that the layer has left."""
    options = np.flatnonzero(np.isfinite(core.reduced[layer]))
    used = (states.used[:, None] + core.problem.extra[layer, options]).ravel()
    costs = (states.cost[:, None] + core.reduced[layer, options]).ravel()
    parent = np.repeat(np.arange(len(states.used)), len(options))
    return _States(used, costs, parent, np.tile(options, len(states.used)))


def _promising(core: _Core, place: int, states: _States) -> tuple[_States, bool]:
    """Return the states that may end better than what is known, `MOST_STATES` of them, and whether any was cut off.

    The damage of a choice is bound + sum of its reduced costs + multiplier x unused room.
    """
    room = core.problem.room - states.used
    price = states.cost + core.multiplier * np.maximum(room - core.largest[place], 0)
    kept = np.flatnonzero((price <= core.most) & (room >= core.smallest[place]))
    cut = kept.size > MOST_STATES
    if cut:
        kept = kept[np.argsort(price[kept], kind="stable")[:MOST_STATES]]
    return _States(states.used[kept], states.cost[kept], states.parent[kept], states.option[kept]), cut


def _traced(steps: list[tuple[int, _States]], state: int, choice: Choice) -> Choice:
    choice = choice.copy()
    for layer, states in reversed(steps):
        choice[layer] = states.option[state]
        state = int(states.parent[state])
    return choice


def _finished(problem: _Problem, dual: _Dual, good: Choice) -> tuple[Choice, bool]:
    """Return the best choice, the good one or one below its damage, and whether every other one was ruled out."""
    least = float(total(problem.damage, good))
    core = _core(problem, dual, least)
    choice = core.reduced.argmin(axis=1)
    used = total(problem.extra, choice) - problem.extra[core.order, choice[core.order]].sum()
    states = _States(np.array([used]), np.zeros(1), np.zeros(1, np.intp), np.zeros(1, np.intp))
    steps, exact = [], True
    for place, layer in enumerate(core.order):
        states, cut = _promising(core, place, _extended(core, layer, states))
        exact = exact and not cut
        if not states.used.size:
            return good, exact
        states = _undominated(states, core.multiplier, STEP_ROUNDING * least)
        steps.append((int(layer), states))
    # Of the states that are left, the largest has the least damage: others like it are dominated.
    found = _traced(steps, len(states.used) - 1, choice)
    better = total(problem.extra, found) <= problem.room and total(problem.damage, found) < least
    return (found if better else good), exact


def optimal(choices: Choices, budget: float) -> Solution:
    """Return the choice with the least total damage whose total size is within the budget, with a bound on the damage.

    Exact to a share of 1e-10 of the damage; the same tables give the same choice. Raises `UserError` when no choice is
    within the budget.
    """
    check_budget(choices, budget)
    problem = _problem(choices, budget)
    dual = _dual(problem)
    if can_sort(choices):
        choice, exact = _by_sorting(choices, problem), True
    else:
        choice, exact = _finished(problem, dual, _good(problem, dual))
    damage = float(total_damage(choices, choice))
    bound = min(max(dual.bound, 0.0), damage)
    gap = (damage - bound) / max(bound, float(np.finfo(np.float64).tiny)) if damage > bound else 0.0
    return Solution(choice, damage, float(total_size(choices, choice)), bound, gap, exact)
