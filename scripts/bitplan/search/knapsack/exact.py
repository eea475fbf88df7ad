"""The least total damage within a budget of size, exactly: the multiple-choice knapsack problem.

    minimize sum_i damage[i, c_i]  subject to  sum_i size[i, c_i] <= budget

Two options and one step of size: sorting. Otherwise the Lagrangian relaxation gives a bound and a choice near it,
reduced costs drop the options that no better choice can hold, and dynamic programming over the rest finishes: at first over
what may lie just above the bound, then over more, until the best choice is found or the rest is too much to go through.
Where that leaves a gap of more than 0.01 %, the layer of the largest step is given options below and above that step in turn
(Kellerer, Pferschy, Pisinger: Knapsack Problems, 2004, chapter 11).
"""

from dataclasses import dataclass, replace

import numpy as np

from bitplan.search.knapsack.choices import Choices, check_budget, limit_of, reachable, total, total_damage, total_size
from bitplan.search.knapsack.lagrangian import (
    BOUND_ROUNDING,
    Choice,
    Dual,
    Problem,
    Table,
    at,
    dual_of,
    good_choice,
    problem_of,
)

# Differences of damage below these shares are rounding: of one step of dynamic programming, and of all steps together.
STEP_ROUNDING, ALL_ROUNDING = 1e-13, 1e-10
# Partial choices kept for a layer, at least and at most, and kept in all: about a second.
LEAST_STATES, MOST_STATES, MOST_WORK = 100, 50_000, 4_000_000
# How far above the bound is searched: these shares of the way to the damage of the best choice known.
SHARES = (1 / 64, 1 / 16, 1 / 4, 1)
# A gap at which nothing more is tried, and how often the choices are divided until then.
ENOUGH, MOST_BRANCHES = 1e-4, 24


@dataclass(frozen=True, eq=False)
class Solution:
    """The best choice (L,), its damage and size, and bounds below which no damage can be.

    `relaxed_bound` is the Lagrangian one; `lower_bound` is at least that, and all that the search has ruled out.
    `gap` is (damage - lower_bound) / lower_bound. `exact` says that there is none: the search was exhaustive.
    """

    choice: Choice
    damage: float
    size: float
    lower_bound: float
    relaxed_bound: float
    gap: float
    exact: bool


# -- two options -----------------------------------------------------------------------------------------------------


def can_sort(choices: Choices) -> bool:
    """Return whether each layer has two options and all layers the same step between them."""
    if len(choices.options) != 2:
        return False
    steps = np.abs(choices.size[:, 1] - choices.size[:, 0])
    return bool(steps[0] > 0 and np.all(steps == steps[0]))


def _by_sorting(choices: Choices, problem: Problem) -> Choice:
    """Give the larger option to the layers that gain most by it; among equal gains to the first one in the model."""
    rows, large = np.arange(len(choices.layers)), choices.size.argmax(axis=1)
    # An option that is not allowed is infinitely bad: a layer that has no smaller one comes first.
    gain = problem.damage[rows, 1 - large] - problem.damage[rows, large]
    forced = np.isposinf(gain)
    step = abs(choices.size[0, 1] - choices.size[0, 0])
    count = forced.sum() + int(min(max(problem.room, 0) // step, len(rows)))
    first = np.argsort(-gain, kind="stable")[:count]
    return np.where(np.isin(rows, first) & (gain > 0), large, 1 - large)


# -- what may lie between the bound and the best choice known ---------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _States:
    """Partial choices: extra size used, sum of reduced costs, and where each came from: a state and an option."""

    used: Table
    cost: Table
    parent: Choice
    option: Choice

    def of(self, kept: Choice) -> "_States":
        """Return the states with these numbers."""
        return _States(self.used[kept], self.cost[kept], self.parent[kept], self.option[kept])


@dataclass(frozen=True, eq=False)
class _Core:
    """What a choice may hold whose damage is at most `most` above the bound.

    `reduced` (L, K) is by how much an option is worse than the layer's best at the multiplier's price of size; inf
    where it alone is above `most`. `order` lists the layers with several options left; `smallest` and `largest` are
    the extra sizes that the layers after each of them can still add.
    """

    problem: Problem
    multiplier: float
    reduced: Table
    most: float
    order: Choice
    smallest: Table
    largest: Table


def _rest(extra: Table) -> Table:
    """Return for each place the sum of what comes after it."""
    return np.append(np.cumsum(extra[::-1])[::-1], 0.0)[1:]


def _reduced_costs(problem: Problem, dual: Dual) -> Table:
    costs = problem.damage + dual.multiplier * problem.extra
    return costs - costs.min(axis=1, keepdims=True)


def _core(problem: Problem, multiplier: float, reduced: Table, most: float) -> _Core:
    is_open = reduced <= most
    several = np.flatnonzero(is_open.sum(axis=1) > 1)
    # The layers whose second option is dearest come first: the states stay few for longest.
    second = np.sort(reduced[several], axis=1)[:, :2].max(axis=1, initial=0)
    order = several[np.argsort(-second, kind="stable")]
    largest = np.where(is_open[order], problem.extra[order], -np.inf).max(axis=1)
    smallest = np.where(is_open[order], problem.extra[order], np.inf).min(axis=1)
    reduced = np.where(is_open, reduced, np.inf)
    return _Core(problem, multiplier, reduced, most, order, _rest(smallest), _rest(largest))


def _undominated(states: _States, multiplier: float, rounding: float) -> _States:
    """Return the states that no smaller one matches in damage, by size."""
    damage = states.cost - multiplier * states.used
    order = np.lexsort((damage, states.used))
    least = np.minimum.accumulate(damage[order])
    # What was kept lies a step of rounding below what was kept before it; the first one always stays.
    return states.of(order[np.concatenate(([True], damage[order][1:] < least[:-1] - rounding))])


def _extended(core: _Core, layer: int, states: _States) -> _States:
    """Return each state with each option that the layer has left."""
    options = np.flatnonzero(np.isfinite(core.reduced[layer]))
    used = (states.used[:, None] + core.problem.extra[layer, options]).ravel()
    costs = (states.cost[:, None] + core.reduced[layer, options]).ravel()
    parent = np.repeat(np.arange(len(states.used), dtype=np.int32), len(options))
    return _States(used, costs, parent, np.tile(options.astype(np.int32), len(states.used)))


def _promising(core: _Core, place: int, states: _States, width: int) -> tuple[_States, float]:
    """Return the `width` states that may end lowest, and how far above the bound any other one ends at least.

    The damage of a choice is bound + sum of its reduced costs + multiplier x unused room.
    """
    room = core.problem.room - states.used
    price = states.cost + core.multiplier * np.maximum(room - core.largest[place], 0)
    kept = np.flatnonzero((price <= core.most) & (room >= core.smallest[place]))
    if kept.size <= width:
        return states.of(kept), core.most
    by_price = kept[np.argsort(price[kept], kind="stable")]
    return states.of(by_price[:width]), float(price[by_price[width]])


def _traced(steps: list[tuple[int, Choice, Choice]], state: int, choice: Choice) -> Choice:
    choice = choice.copy()
    for layer, parent, option in reversed(steps):
        choice[layer] = option[state]
        state = int(parent[state])
    return choice


def _searched(core: _Core, least: float) -> tuple[Choice | None, float]:
    """Return the best choice in the core, if any, and how far above the bound every choice that was not seen is.

    `least` is the damage of the best choice known.
    """
    rounding = least * min(STEP_ROUNDING, ALL_ROUNDING / max(len(core.order), 1))
    width = min(MOST_STATES, MOST_WORK // max(len(core.order), 1))
    if width < min(LEAST_STATES, MOST_STATES):
        return None, 0.0
    choice, extra = core.reduced.argmin(axis=1), core.problem.extra
    used = total(extra, choice) - extra[core.order, choice[core.order]].sum()
    states = _States(np.array([used]), np.zeros(1), np.zeros(1, np.int32), np.zeros(1, np.int32))
    steps, ruled_out = [], core.most
    for place, layer in enumerate(core.order):
        states, cut = _promising(core, place, _extended(core, layer, states), width)
        ruled_out = min(ruled_out, cut)
        if not states.used.size:
            return None, ruled_out
        states = _undominated(states, core.multiplier, rounding)
        steps.append((int(layer), states.parent, states.option))
    # Of the states that are left, the largest has the least damage: others like it are dominated.
    found = _traced(steps, len(states.used) - 1, choice)
    # Beyond the room by the rounding of a sum in another order: nothing is known of the next best then.
    return (found, ruled_out) if total(extra, found) <= core.problem.room else (None, 0.0)


def _finished(problem: Problem, dual: Dual, choice: Choice) -> tuple[Choice, float]:
    """Return the best choice, the given one or one of less damage, and the damage below which none can be."""
    reduced, bound, least = _reduced_costs(problem, dual), dual.bound, float(total(problem.damage, choice))
    for share in SHARES:
        if bound >= least * (1 - BOUND_ROUNDING):
            break
        most = share * (least - dual.bound + BOUND_ROUNDING * least)
        found, ruled_out = _searched(_core(problem, dual.multiplier, reduced, most), least)
        if found is not None and total(problem.damage, found) < least:
            choice, least = found, float(total(problem.damage, found))
        bound = max(bound, dual.bound + ruled_out)
        if ruled_out < most:
            break
    return choice, min(bound, least)


def _solution(choices: Choices, choice: Choice, bound: float, relaxed: float) -> Solution:
    damage = float(total_damage(choices, choice))
    exact = bound >= damage * (1 - BOUND_ROUNDING)
    bound = damage if exact else max(bound, 0.0)
    gap = (damage - bound) / max(bound, float(np.finfo(np.float64).tiny))
    relaxed = min(max(relaxed, 0.0), damage)
    return Solution(choice, damage, float(total_size(choices, choice)), bound, relaxed, gap, exact)


# -- a layer so large that its step is the gap -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Node:
    """A part of the choices, its best choice as far as known, and the damage below which none of the part can be."""

    choices: Choices
    dual: Dual
    choice: Choice
    bound: float


def _node(choices: Choices, budget: float) -> _Node | None:
    """Return the node of a part of the choices; None where none of them is within the budget."""
    if reachable(choices)[0] > limit_of(budget):
        return None
    problem = problem_of(choices, budget)
    dual = dual_of(problem)
    choice, bound = _finished(problem, dual, good_choice(problem, dual))
    return _Node(choices, dual, choice, bound)


def _parts(node: _Node) -> list[Choices]:
    """Return the choices in two parts: the layer of the largest step across the budget below that step, and above it."""
    size = node.choices.size
    layer = int((at(size, node.dual.beyond) - at(size, node.dual.within)).argmax())
    small = size[layer] <= size[layer, node.dual.within[layer]]
    parts = []
    for kept in (small, ~small):
        damage = node.choices.damage.copy()
        damage[layer, ~kept] = np.inf
        parts.append(replace(node.choices, damage=damage))
    return parts


def _branched(root: _Node, budget: float) -> tuple[Choice, float]:
    """Return the best choice of all parts and their bound, the part of the lowest bound divided again and again."""
    best, least, nodes = root.choice, float(total_damage(root.choices, root.choice)), [root]
    for _ in range(MOST_BRANCHES):
        node = min(nodes, key=lambda each: each.bound)
        if node.bound >= least * (1 - ENOUGH) or np.array_equal(node.dual.within, node.dual.beyond):
            break
        made = [found for part in _parts(node) if (found := _node(part, budget)) is not None]
        nodes = [each for each in nodes if each is not node] + made
        for each in made:
            if total_damage(root.choices, each.choice) < least:
                best, least = each.choice, float(total_damage(root.choices, each.choice))
    return best, min([least, *(each.bound for each in nodes)])


def optimal(choices: Choices, budget: float) -> Solution:
    """Return the choice with the least total damage whose total size is within the budget, with bounds on the damage.

    Exact to a share of 1e-10 of the damage where it says so; the same tables give the same choice. Raises `UserError`
    when no choice is within the budget.
    """
    check_budget(choices, budget)
    if can_sort(choices):
        problem = problem_of(choices, budget)
        choice = _by_sorting(choices, problem)
        return _solution(choices, choice, float(total_damage(choices, choice)), dual_of(problem).bound)
    root = _node(choices, budget)
    return _solution(choices, *_branched(root, budget), root.dual.bound)
