"""The levels of a layer: its options by rising size that no smaller one matches in damage; steps between neighbours."""

import numpy as np
from numpy.typing import NDArray

from bitplan.search.knapsack.choices import Choices

Choice = NDArray[np.intp]


def levels_of(choices: Choices) -> list[list[int]]:
    """Return for each layer its allowed options by rising size, without those that a smaller or equal one matches in damage."""
    found = []
    for damage, size in zip(choices.damage, choices.size, strict=True):
        order = [k for k in np.lexsort((damage, size)) if np.isfinite(damage[k])]
        kept: list[int] = []
        for option in order:
            if not kept or damage[option] < damage[kept[-1]]:
                kept.append(int(option))
        found.append(kept)
    return found


def neighbours(levels: list[list[int]], choice: Choice) -> list[list[int]]:
    """Return for each layer the options one level below and above the chosen one; of an option that is no level the nearest above."""
    found = []
    for own, option in zip(levels, choice.tolist(), strict=True):
        place = own.index(option) if option in own else 0
        found.append([own[i] for i in (place - 1, place + 1) if 0 <= i < len(own) and own[i] != option])
    return found
