"""Correcting an allocation: damages of single layers add up only while they are small, so steps around the solution are measured in place.

Around a choice, single steps of one level are measured with all other layers as chosen, for the layers whose gain per byte is nearest to
the price of size; the changes are solved for exactly under the same budget. (methods: optimal allocation, step 4.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitplan.search.knapsack.choices import Choices, total_size
from bitplan.search.knapsack.exact import optimal
from bitplan.search.knapsack.lagrangian import dual_of, problem_of
from bitplan.search.knapsack.levels import levels_of, neighbours

Choice = NDArray[np.intp]
# damage(choice (L,)) -> mean KL of each window, (W,)
Measure = Callable[[Choice], NDArray[np.float64]]


@dataclass(frozen=True)
class Step:
    """A layer that changes its option, and by how much the table expects damage and size to change."""

    layer: int
    option: int
    damage: float
    size: float


def steps_around(choices: Choices, choice: Choice, budget: float, most: int) -> list[Step]:
    """Return up to `most` single steps of one level, those whose change of damage per size is nearest to the price of size first."""
    price = dual_of(problem_of(choices, budget)).multiplier
    steps = []
    for layer, options in enumerate(neighbours(levels_of(choices), choice)):
        here = choice[layer]
        for option in options:
            damage = float(choices.damage[layer, option] - choices.damage[layer, here])
            steps.append(Step(layer, option, damage, float(choices.size[layer, option] - choices.size[layer, here])))
    # A step up gains what its size is worth where damage + price x size is 0: the nearer, the less the table decides.
    return sorted(steps, key=lambda step: abs(step.damage + price * step.size))[:most]


def corrected(choices: Choices, choice: Choice, budget: float, measure: Measure, most: int) -> tuple[Choice, int]:
    """Return the best choice by steps measured in place, and how many evaluations that took; the choice itself if none is better.

    The measured change of each step is taken for its damage, and all steps together are solved for under the budget.
    """
    steps = steps_around(choices, choice, budget, most)
    base = measure(choice).mean()
    damage = np.full(choices.damage.shape, np.inf)
    damage[np.arange(len(choice)), choice] = 0.0
    for step in steps:
        changed = choice.copy()
        changed[step.layer] = step.option
        damage[step.layer, step.option] = measure(changed).mean() - base
    # Each layer's damages are moved to 0 or more: what is added to all of a layer's options changes no choice.
    local = damage - np.minimum(damage.min(axis=1, keepdims=True), 0.0)
    room = max(budget, float(total_size(choices, choice)))
    found = optimal(Choices(choices.layers, choices.options, local, choices.size), room).choice
    return found, len(steps) + 1


def same(first: Sequence[int], second: Sequence[int]) -> bool:
    """Return whether two choices are one."""
    return list(first) == list(second)
