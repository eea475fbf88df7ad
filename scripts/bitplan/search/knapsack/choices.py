"""The table that a search chooses from: for each layer the damage and the size of each option."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitplan.core.errors import user_error

# Sums of sizes that are no integers differ in the last digits with the order of the layers.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Choices:
    """One option has to be chosen for each layer. Raises `UserError` where the table cannot be searched.

    `damage[i, k]` (L, K) is what option k adds to the damage of the whole model, 0 or more, in any unit that adds up;
    inf: the layer may not have this option. `size[i, k]` (L, K) is what it takes, 0 or more, in bits or another unit
    that adds up.
    """

    layers: tuple[str, ...]
    options: tuple[str, ...]
    damage: NDArray[np.float64]
    size: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("layers", "options"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("damage", "size"):
            object.__setattr__(self, name, _table(self, name))
        _refuse_cells(
            self, "damage", np.isnan(self.damage) | (self.damage < 0), "0 or more, inf where it is not allowed"
        )
        _refuse_cells(self, "size", ~np.isfinite(self.size) | (self.size < 0), "finite and 0 or more")
        _refuse_layers_without_option(self)

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Which options each layer may have, (L, K)."""
        return np.isfinite(self.damage)


def _table(choices: Choices, name: str) -> NDArray[np.float64]:
    table = np.array(getattr(choices, name), dtype=np.float64)
    shape = (len(choices.layers), len(choices.options))
    if table.shape != shape or 0 in shape:
        hint = "Give one row per layer and one column per option, at least one of each"
        raise user_error(
            "KNAPSACK-BAD-SHAPE", name, f"its shape is {table.shape}, the layers and options make {shape}", hint
        )
    table.flags.writeable = False
    return table


def _refuse_cells(choices: Choices, name: str, wrong: NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        i, k = np.argwhere(wrong)[0]
        more = f" (and {wrong.sum() - 1} more)" if wrong.sum() > 1 else ""
        found = f"the {name} is {getattr(choices, name)[i, k]:g}{more}"
        raise user_error(
            "KNAPSACK-BAD-VALUE",
            f"layer {choices.layers[i]}, option {choices.options[k]}",
            found,
            f"It must be {expected}",
        )


def _refuse_layers_without_option(choices: Choices) -> None:
    stuck = np.flatnonzero(~choices.allowed.any(axis=1))
    if stuck.size:
        names = ", ".join(choices.layers[i] for i in stuck[:5]) + (" ..." if stuck.size > 5 else "")
        raise user_error(
            "KNAPSACK-NO-OPTION",
            f"layer {names}",
            "none of the options is allowed",
            f"Allow one of {', '.join(choices.options)}",
        )


def weighted(choices: Choices, weights: ArrayLike) -> Choices:
    """Return the choices with each layer's damage times its weight, (L,): what is minimized is sum_i damage_i weight_i.

    Raises `UserError` where a weight is missing, NaN, infinite, 0 or negative.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(choices.layers),):
        raise user_error(
            "KNAPSACK-BAD-SHAPE",
            "weights",
            f"{weights.size} for {len(choices.layers)} layers",
            "Give one for each layer",
        )
    for i in np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))[:1]:
        raise user_error(
            "KNAPSACK-BAD-VALUE",
            f"layer {choices.layers[i]}",
            f"its weight is {weights[i]:g}",
            "It must be finite and above 0",
        )
    return replace(choices, damage=choices.damage * weights[:, None])


def total(table: NDArray[np.float64], population: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return sum_i table[i, population[..., i]] as (...): one gather for a choice (L,) or a population (P, L)."""
    return table.ravel().take(population + np.arange(table.shape[0]) * table.shape[1]).sum(axis=-1)


def total_damage(choices: Choices, population: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the damage of a choice vector (L,) or of each row of a population (P, L)."""
    return total(choices.damage, population)


def total_size(choices: Choices, population: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the size of a choice vector (L,) or of each row of a population (P, L)."""
    return total(choices.size, population)


def reachable(choices: Choices) -> tuple[float, float]:
    """Return the smallest and the largest size that the allowed options make."""
    smallest = np.where(choices.allowed, choices.size, np.inf).min(axis=1)
    largest = np.where(choices.allowed, choices.size, -np.inf).max(axis=1)
    return float(smallest.sum()), float(largest.sum())


def limit_of(budget: float) -> float:
    """Return the largest sum of sizes that counts as within the budget: rounding of the sum is no excess."""
    return budget + ROUNDING * abs(budget)


def check_budget(choices: Choices, budget: float) -> None:
    """Raise `UserError` unless some choice has a size within the budget; it names the sizes that can be reached."""
    low, high = reachable(choices)
    if not limit_of(budget) >= low:
        way_out = f"Raise the budget to {low:.10g} at least, or allow smaller options"
        hint = f"The options allow {low:.10g} to {high:.10g}. {way_out}"
        raise user_error(
            "SEARCH-TARGET-OUT-OF-REACH", "budget", f"no combination has a size of {budget:.10g} or less", hint
        )


def as_choice(choices: Choices, names: Sequence[str]) -> NDArray[np.intp]:
    """Return the choice vector (L,) of one option's name for each layer. Raises `UserError` on an unknown name."""
    for layer, name in zip(choices.layers, names, strict=True):
        if name not in choices.options:
            raise user_error(
                "KNAPSACK-NO-OPTION",
                f"layer {layer}",
                f"there is no option {name!r}",
                f"Use one of {', '.join(choices.options)}",
            )
    return np.array([choices.options.index(name) for name in names], dtype=np.intp)
