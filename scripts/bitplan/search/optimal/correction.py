"""Correcting an allocation: damages of single layers add up only while they are small, so steps around the solution are measured in place.

Around a choice, single steps of one level are measured with all other layers as chosen, for the layers whose gain per byte is nearest to
the price of size; the changes are solved for exactly under the same budget. (methods: optimal allocation, step 4.)

That takes an evaluation for each step. So it is estimated first what the steps could gain, from how far the plan's KL is from the table's sum, and
how much a gain has to be for the text that decides to show it, from one of the steps: three evaluations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitplan.search.knapsack.choices import Choices, total_size
from bitplan.search.knapsack.exact import optimal
from bitplan.search.knapsack.lagrangian import dual_of, problem_of
from bitplan.search.knapsack.levels import levels_of, neighbours
from bitplan.search.optimal.paired import difference

Choice = NDArray[np.intp]
# damage(choice (L,)) -> mean KL of each window, (W,)
Measure = Callable[[Choice], NDArray[np.float64]]


@dataclass(frozen=True)
class Step:
    """A layer that changes its option, by how much the table expects damage and size to change, and what it costs at the price of size.

    `cost` is damage + price x size, 0 or more around an optimum up to what is left of the budget.
    """

    layer: int
    option: int
    damage: float
    size: float
    cost: float

    def of(self, choice: Choice) -> Choice:
        """Return the choice after this step."""
        changed = choice.copy()
        changed[self.layer] = self.option
        return changed


@dataclass(frozen=True)
class Prospect:
    """What correcting could gain at best, and the least gain that the deciding text shows, both in nats per token."""

    could_gain: float
    least_shown: float

    @property
    def worthwhile(self) -> bool:
        """Whether the text could show the gain."""
        return self.could_gain > self.least_shown


def steps_around(choices: Choices, choice: Choice, budget: float, most: int) -> list[Step]:
    """Return up to `most` single steps of one level, those whose change of damage per size is nearest to the price of size first."""
    price = dual_of(problem_of(choices, budget)).multiplier
    steps = []
    for layer, options in enumerate(neighbours(levels_of(choices), choice)):
        here = choice[layer]
        for option in options:
            damage = float(choices.damage[layer, option] - choices.damage[layer, here])
            size = float(choices.size[layer, option] - choices.size[layer, here])
            steps.append(Step(layer, option, damage, size, damage + price * size))
    # A step up gains what its size is worth where damage + price x size is 0: the nearer, the less the table decides.
    return sorted(steps, key=lambda step: abs(step.cost))[:most]


def prospect(choices: Choices, choice: Choice, budget: float, measure: Measure, judge: Measure, most: int) -> Prospect:
    """Return what up to `most` steps could gain on the text of `measure`, and what the text of `judge` shows.

    The share m by which the plan's KL differs from the sum of the table's is taken for how far each step's change may be off: a step gains
    m |damage| - cost where that is more than 0. The least gain shown is half the 95 % interval of the first step's change.
    """
    steps = steps_around(choices, choice, budget, most)
    expected = float(choices.damage[np.arange(len(choice)), choice].sum())
    if not steps or expected == 0:
        return Prospect(0.0, 0.0)
    misfit = abs(float(measure(choice).mean()) - expected) / expected
    could_gain = sum(max(0.0, misfit * abs(step.damage) - max(0.0, step.cost)) for step in steps)
    change = difference(judge(steps[0].of(choice)), judge(choice))
    return Prospect(could_gain, (change.high - change.low) / 2)


def corrected(choices: Choices, choice: Choice, budget: float, measure: Measure, most: int) -> tuple[Choice, int]:
    """Return the best choice by steps measured in place, and how many evaluations that took; the choice itself if none is better.

    The measured change of each step is taken for its damage, and all steps together are solved for under the budget.
    """
    steps = steps_around(choices, choice, budget, most)
    base = measure(choice).mean()
    damage = np.full(choices.damage.shape, np.inf)
    damage[np.arange(len(choice)), choice] = 0.0
    for step in steps:
        damage[step.layer, step.option] = measure(step.of(choice)).mean() - base
    # Each layer's damages are moved to 0 or more: what is added to all of a layer's options changes no choice.
    local = damage - np.minimum(damage.min(axis=1, keepdims=True), 0.0)
    room = max(budget, float(total_size(choices, choice)))
    found = optimal(Choices(choices.layers, choices.options, local, choices.size), room).choice
    return found, len(steps) + 1


def same(first: Sequence[int], second: Sequence[int]) -> bool:
    """Return whether two choices are one."""
    return list(first) == list(second)
