"""Evolutionary refinement of plans of one size: random swaps of levels, judged on more and more windows (after EvoPress, Sieberling et al. 2024).

Each generation draws offspring of the incumbent by swaps that keep the size, drops half of them after each of several rounds on more
windows, and takes the last one if it damages less beyond chance. The refinement ends with the first generation that brings nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitplan.search.knapsack.choices import Choices, limit_of, total_size
from bitplan.search.knapsack.levels import levels_of, neighbours
from bitplan.search.optimal.paired import difference

Choice = NDArray[np.intp]
# damage(choice (L,), windows) -> mean KL of each of the first `windows` windows
MeasureSome = Callable[[Choice, int], NDArray[np.float64]]
TRIES = 200


@dataclass(frozen=True)
class RefinementSettings:
    """Offspring of a generation, most generations, swaps of an offspring, windows of the first round, seed."""

    offspring: int = 16
    generations: int = 8
    swaps: int = 3
    first_windows: int = 2
    seed: int = 0


def swapped(choices: Choices, choice: Choice, budget: float, swaps: int, rng: np.random.Generator) -> Choice | None:
    """Return the choice after up to `swaps` swaps, each a random layer one level up and others down until the size holds; None if none fits."""
    levels, made = levels_of(choices), choice.copy()
    for _ in range(int(rng.integers(1, swaps + 1))):
        up = _stepped(choices, levels, made, int(rng.integers(len(choice))), up=True)
        if up is None:
            continue
        for layer in rng.permutation(len(choice)):
            if total_size(choices, up) <= limit_of(budget):
                break
            down = _stepped(choices, levels, up, int(layer), up=False)
            up = up if down is None or up[layer] != made[layer] else down
        made = up if total_size(choices, up) <= limit_of(budget) else made
    return None if (made == choice).all() else made


def _stepped(choices: Choices, levels: list[list[int]], choice: Choice, layer: int, up: bool) -> Choice | None:
    """Return the choice with one layer a level up or down; None where there is none."""
    sizes, here = choices.size[layer], choice[layer]
    options = neighbours([levels[layer]], choice[layer : layer + 1])[0]
    fitting = [k for k in options if (sizes[k] > sizes[here]) == up and sizes[k] != sizes[here]]
    if not fitting:
        return None
    changed = choice.copy()
    changed[layer] = fitting[0]
    return changed


def offspring_of(
    choices: Choices, choice: Choice, budget: float, settings: RefinementSettings, rng: np.random.Generator
) -> list[Choice]:
    """Return unlike choices of about the incumbent's size, none above the budget; fewer where swaps find no more."""
    found: dict[bytes, Choice] = {}
    for _ in range(TRIES):
        if len(found) == settings.offspring:
            break
        made = swapped(choices, choice, budget, settings.swaps, rng)
        if made is not None:
            found.setdefault(made.tobytes(), made)
    return list(found.values())


def refine(
    choices: Choices, choice: Choice, budget: float, measure: MeasureSome, windows: int, settings: RefinementSettings
) -> tuple[Choice, int]:
    """Return the choice that no offspring beats beyond chance on `windows` windows, and how many generations were run."""
    rng, incumbent = np.random.default_rng(settings.seed), choice
    for generation in range(settings.generations):
        alive, some = offspring_of(choices, incumbent, budget, settings, rng), min(settings.first_windows, windows)
        while alive and (len(alive) > 1 or some < windows):
            order = sorted(alive, key=lambda made: float(measure(made, some).mean()))
            alive = order[: max(1, len(order) // 2)]
            some = min(2 * some, windows)
        if not alive or not difference(measure(alive[0], windows), measure(incumbent, windows)).lower:
            return incumbent, generation + 1
        incumbent = alive[0]
    return incumbent, settings.generations
