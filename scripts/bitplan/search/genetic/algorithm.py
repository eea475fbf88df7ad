"""Genetic search over a table of damages and sizes: a population of choices, none of them ever over the budget.

The fitness is minus the total damage. Where it is a sum over the layers, as here, the exact optimum is known
(`exact.py`): the result states its gap to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitplan.core.errors import user_error
from bitplan.search.knapsack.choices import Choices, check_budget, limit_of, total, total_damage, total_size
from bitplan.search.knapsack.exact import Solution

HISTORY = ("generation", "best", "mean", "diversity", "size", "largest_size", "rate")
UP_WHERE_SENSITIVE, UP_ELSEWHERE = 0.7, 0.3
# Importance weights lie in [0.5, 2]; a gene mutates at rate x (2 - weight) / 1.5.
LARGEST_WEIGHT, WEIGHT_RANGE = 2.0, 1.5
ROUNDING = 1e-9

Table = NDArray[np.float64]
Genes = NDArray[np.intp]


@dataclass(frozen=True)
class GeneticSettings:
    """Size of the search and its operators; shares and rates from 0 to 1.

    `elite_share` of the population is kept, two at least; `two_point_share` of the crossovers are two-point, the rest
    uniform. The mutation rate starts at `mutation`, is multiplied by `on_progress` in a generation with a better best
    and by `on_stagnation` in each one from the `stagnant_after`th without, and stays within its bounds. `stop_after`
    generations without progress end the search. `fill` spends the room that mutation leaves below the budget, in every
    individual.
    """

    population: int = 30
    generations: int = 25
    tournament: int = 3
    elite_share: float = 0.15
    two_point_share: float = 0.6
    mutation: float = 0.12
    least_mutation: float = 0.05
    most_mutation: float = 0.3
    on_progress: float = 0.95
    on_stagnation: float = 1.5
    stagnant_after: int = 3
    stop_after: int = 10
    fill: bool = True
    seed: int = 0

    @property
    def elites(self) -> int:
        """How many of the best are kept unchanged."""
        return max(2, int(self.elite_share * self.population))

    def check(self) -> None:
        """Raise `UserError` where a setting is out of its range."""
        least = {"population": 3, "generations": 0, "tournament": 1, "stagnant_after": 1, "stop_after": 1, "seed": 0}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name in least and value < least[name]:
                raise user_error("GENETIC-OUT-OF-RANGE", name, f"is {value}", f"Use {least[name]} or more")
            if ("share" in name or "mutation" in name) and not 0 <= value <= 1:
                raise user_error("GENETIC-OUT-OF-RANGE", name, f"is {value:g}", "Use a number from 0 to 1")
        if not self.least_mutation <= self.most_mutation:
            raise user_error("GENETIC-OUT-OF-RANGE", "least_mutation", "is above most_mutation", "Lower it")
        if not 0 < self.on_progress <= 1 <= self.on_stagnation:
            raise user_error(
                "GENETIC-OUT-OF-RANGE",
                "on_progress, on_stagnation",
                "the rate may not rise on progress",
                "Use e.g. 0.95 and 1.5",
            )
        if self.elites >= self.population:
            raise user_error("GENETIC-OUT-OF-RANGE", "elite_share", "leaves no room for children", "Lower it")


@dataclass(frozen=True, eq=False)
class GeneticResult:
    """The best choice (L,) found, its damage and size, a row of `HISTORY` for each generation, and what it took.

    Row 0 is the initial population. `best` and `mean` are damages, `size` is that of the best, `largest_size` that of
    the largest individual, `diversity` the mean over the layers of 1 - share of the commonest option, `rate` the
    mutation rate that made the generation. `evaluations` counts the individuals whose damage was computed.
    """

    choice: Genes
    damage: float
    size: float
    history: tuple[dict[str, float], ...]
    evaluations: int
    stopped_early: bool


# -- rungs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Ladder:
    """Each layer's allowed options by size, so that a step up is a larger one: a gene is a rung, 0 the smallest.

    Tables are (L, K): the option on each rung, its damage and size; what a step down from it saves and what it adds to
    the damage. `rungs` (L,) counts the allowed options. `limit` bounds the sum of the sizes.
    """

    option: Genes
    damage: Table
    size: Table
    saving: Table
    loss: Table
    rungs: Genes
    limit: float


def _ladder(choices: Choices, limit: float) -> _Ladder:
    # Of two options of one size the worse one comes first: the step up from it costs nothing.
    option = np.lexsort((-choices.damage, np.where(choices.allowed, choices.size, np.inf)), axis=1)
    damage = np.take_along_axis(choices.damage, option, axis=1)
    size = np.take_along_axis(choices.size, option, axis=1)
    rungs = choices.allowed.sum(axis=1)
    # No gene stands on a rung that is not allowed; its entries have to be numbers all the same.
    damage = np.where(np.arange(damage.shape[1]) < rungs[:, None], damage, 0.0)
    saving = np.diff(size, axis=1, prepend=size[:, :1])
    loss = -np.diff(damage, axis=1, prepend=damage[:, :1])
    return _Ladder(option, damage, size, saving, loss, rungs, limit)


def _each(table: Table, population: Genes) -> Table:
    """Return table[i, population[p, i]] as (P, L)."""
    return table.ravel().take(population + np.arange(table.shape[0]) * table.shape[1])


def _prices(worse: Table, smaller: Table, rng: np.random.Generator) -> Table:
    """Return sqrt(u / (1 - u)) x damage / size, u uniform, (P, L): in this order cheap genes tend to come first.

    The factor is log-logistic with scale 1/2: its quartiles are 0.58 and 1.7. Where there is no size the price is inf.
    """
    odds = rng.random(worse.shape)
    return np.divide(np.sqrt(odds / (1 - odds)) * worse, smaller, out=np.full(worse.shape, np.inf), where=smaller > 0)


def _stepped_down(ladder: _Ladder, population: Genes, rng: np.random.Generator) -> Genes:
    """Return the population with as many genes one rung lower, cheap ones first, as save the excess, or all of them."""
    excess = total(ladder.size, population) - ladder.limit
    saving = _each(ladder.saving, population)
    order = np.argsort(_prices(np.maximum(_each(ladder.loss, population), 0), saving, rng), axis=1, kind="stable")
    in_order = np.take_along_axis(saving, order, axis=1)
    moves = np.empty(population.shape, dtype=bool)
    np.put_along_axis(moves, order, np.cumsum(in_order, axis=1) - in_order < excess[:, None], axis=1)
    return np.maximum(population - moves, 0)


def _repaired(ladder: _Ladder, population: Genes, rng: np.random.Generator) -> Genes:
    """Return the population (P, L) with every individual within the limit; those that were are unchanged."""
    population = population.copy()
    over = np.flatnonzero(total(ladder.size, population) > ladder.limit)
    while over.size:
        population[over] = _stepped_down(ladder, population[over], rng)
        over = over[total(ladder.size, population[over]) > ladder.limit]
    return population


def _filled(ladder: _Ladder, population: Genes, rng: np.random.Generator) -> Genes:
    """Return the population with genes one rung higher, those that gain most first, while the room left holds them."""
    above = np.minimum(population + 1, ladder.rungs - 1)
    gain, cost = _each(ladder.loss, above), _each(ladder.saving, above)
    useful = (above > population) & (gain > 0)
    prices = np.where(useful, _prices(cost, np.where(useful, gain, 0), rng), np.inf)
    order = np.argsort(prices, axis=1, kind="stable")
    needed = np.cumsum(np.take_along_axis(np.where(useful, cost, 0), order, axis=1), axis=1)
    moves = np.empty(population.shape, dtype=bool)
    np.put_along_axis(moves, order, needed <= (ladder.limit - total(ladder.size, population))[:, None], axis=1)
    filled = population + (moves & useful)
    # The sum of the steps rounds otherwise than that of the sizes.
    return np.where((total(ladder.size, filled) <= ladder.limit)[:, None], filled, population)


def _within(ladder: _Ladder, population: Genes, fill: bool, rng: np.random.Generator) -> Genes:
    """Return the population within the limit, and up to it where `fill` is set."""
    repaired = _repaired(ladder, population, rng)
    return _filled(ladder, repaired, rng) if fill else repaired


# -- operators -------------------------------------------------------------------------------------------------------


def _selected(damages: Table, count: int, tournament: int, rng: np.random.Generator) -> Genes:
    """Return the rows of the winners of `count` tournaments."""
    entered = rng.integers(len(damages), size=(count, tournament))
    return entered[np.arange(count), damages[entered].argmin(axis=1)]


def _crossed(first: Genes, second: Genes, two_point_share: float, rng: np.random.Generator) -> Genes:
    """Return one child of each pair (N, L): a stretch of the second in the first, or each gene from either."""
    count, layers = first.shape
    cuts = np.sort(rng.integers(layers + 1, size=(count, 2)), axis=1)
    place = np.arange(layers)
    stretch = (place >= cuts[:, :1]) & (place < cuts[:, 1:])
    either = rng.random(first.shape) < 0.5
    two_point = rng.random((count, 1)) < two_point_share
    return np.where(np.where(two_point, stretch, either), second, first)


@dataclass(frozen=True, eq=False)
class _Tendency:
    """For each layer (L,): how much more or less than the rate its gene mutates, and the chance that it goes up."""

    factor: Table
    up: Table


def _mutated(population: Genes, ladder: _Ladder, tendency: _Tendency, rate: float, rng: np.random.Generator) -> Genes:
    """Return the population after mutation: a gene goes one rung up or down, and stays where there is none."""
    hit = rng.random(population.shape) < np.clip(rate * tendency.factor, 0, 1)
    step = np.where(rng.random(population.shape) < tendency.up, 1, -1)
    return np.clip(population + hit * step, 0, ladder.rungs - 1)


def _tendency(choices: Choices, importance: ArrayLike | None, ratio: ArrayLike | None) -> _Tendency:
    weights = _per_layer(choices, "importance", importance, 1.0)
    ratios = _per_layer(choices, "ratio", ratio, 0.0)
    sensitive = ratios > np.median(ratios)
    up = np.full(len(weights), 0.5) if ratio is None else np.where(sensitive, UP_WHERE_SENSITIVE, UP_ELSEWHERE)
    return _Tendency((LARGEST_WEIGHT - weights) / WEIGHT_RANGE, up)


def _per_layer(choices: Choices, name: str, values: ArrayLike | None, default: float) -> Table:
    if values is None:
        return np.full(len(choices.layers), default)
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(choices.layers),):
        raise user_error(
            "GENETIC-BAD-INPUT",
            name,
            f"{values.size} values for {len(choices.layers)} layers",
            "Give one for each layer",
        )
    for i in np.flatnonzero(np.isnan(values))[:1]:
        raise user_error(
            "GENETIC-BAD-INPUT",
            f"layer {choices.layers[i]}",
            f"its {name} is NaN",
            "Remove the layer or measure it again",
        )
    return values


# -- the search ------------------------------------------------------------------------------------------------------


def _seed_rows(choices: Choices, ladder: _Ladder, seeds: Sequence[ArrayLike], most: int) -> Genes:
    """Return the given choices as rungs (S, L). Raises `UserError` where one is no choice of these options."""
    if not len(seeds):
        return np.empty((0, len(choices.layers)), dtype=np.intp)
    rows = np.asarray(seeds)
    if rows.ndim != 2 or rows.shape[1] != len(choices.layers) or len(rows) > most:
        each = f"each with one option for each of {len(choices.layers)} layers"
        hint = f"Give at most {most}, the size of the population, {each}"
        raise user_error("GENETIC-BAD-SEEDS", "seeds", f"their shape is {rows.shape}", hint)
    rows = rows.astype(np.intp)
    known = (rows >= 0) & (rows < len(choices.options))
    wrong = ~known | ~choices.allowed[np.arange(rows.shape[1]), np.where(known, rows, 0)]
    for s, i in np.argwhere(wrong)[:1]:
        raise user_error(
            "GENETIC-BAD-SEEDS",
            f"seed {s}, layer {choices.layers[i]}",
            f"option {rows[s, i]} is not allowed",
            "Choose another",
        )
    return np.argsort(ladder.option, axis=1)[np.arange(rows.shape[1]), rows]


def _diversity(population: Genes, options: int) -> float:
    """Return the mean over the genes of 1 - share of the commonest rung: 0 when all individuals are equal."""
    count, layers = population.shape
    places = (population + np.arange(layers) * options).ravel()
    commonest = np.bincount(places, minlength=layers * options).reshape(layers, options).max(axis=1)
    return float(1 - commonest.mean() / count)


def _row(generation: int, ladder: _Ladder, population: Genes, damages: Table, rate: float) -> dict[str, float]:
    sizes, best = total(ladder.size, population), int(damages.argmin())
    diversity = _diversity(population, ladder.option.shape[1])
    best_and_mean = float(damages[best]), float(damages.mean())
    values = (generation, *best_and_mean, diversity, float(sizes[best]), float(sizes.max()), rate)
    return dict(zip(HISTORY, values, strict=True))


def _rate(rate: float, stagnant: int, settings: GeneticSettings) -> float:
    """Return the rate for the next generation after so many without progress."""
    if stagnant == 0:
        return max(rate * settings.on_progress, settings.least_mutation)
    return min(rate * settings.on_stagnation, settings.most_mutation) if stagnant >= settings.stagnant_after else rate


def _next(
    population: Genes,
    damages: Table,
    ladder: _Ladder,
    tendency: _Tendency,
    rate: float,
    settings: GeneticSettings,
    rng: np.random.Generator,
) -> Genes:
    """Return the next generation: the elites first, then children of the winners of tournaments."""
    elites = population[np.argsort(damages, kind="stable")[: settings.elites]]
    count = len(population) - len(elites)
    parents = population[_selected(damages, 2 * count, settings.tournament, rng)]
    children = _crossed(parents[:count], parents[count:], settings.two_point_share, rng)
    mutants = _mutated(children, ladder, tendency, rate, rng)
    return np.concatenate((elites, _within(ladder, mutants, settings.fill, rng)))


def search(
    choices: Choices,
    budget: float,
    settings: GeneticSettings | None = None,
    importance: ArrayLike | None = None,
    ratio: ArrayLike | None = None,
    seeds: Sequence[ArrayLike] = (),
) -> GeneticResult:
    """Return the best choice found whose size is within the budget; the same arguments give the same result.

    The fitness is -sum_i damage[i, choice_i] of the choices as they are: where layers count differently, hand in
    `choices.weighted(choices, importance)`, here and to the exact search. `importance` (L,), from 0.5 to 2, only says
    where genes mutate: at rate x (2 - importance) / 1.5. `ratio` (L,), damage of the smaller over that of the larger
    option, says where to: one option up with probability 0.7 where it is above the median, else 0.3; without it 0.5.
    `seeds` (S, L) are choices that the first population starts from, brought within the budget. Raises `UserError` on a
    budget that no choice holds, on settings out of range and on values that do not fit the layers.
    """
    settings = settings or GeneticSettings()
    settings.check()
    check_budget(choices, budget)
    ladder, tendency = _ladder(choices, limit_of(budget)), _tendency(choices, importance, ratio)
    rng = np.random.Generator(np.random.PCG64(settings.seed))
    population = rng.integers(ladder.rungs, size=(settings.population, len(choices.layers)))
    given = _seed_rows(choices, ladder, seeds, settings.population)
    population = _within(ladder, np.concatenate((given, population[len(given) :])), settings.fill, rng)
    damages, rate, stagnant = total(ladder.damage, population), settings.mutation, 0
    history = [_row(0, ladder, population, damages, rate)]
    while len(history) <= settings.generations and stagnant < settings.stop_after:
        population = _next(population, damages, ladder, tendency, rate, settings, rng)
        damages = total(ladder.damage, population)
        history.append(_row(len(history), ladder, population, damages, rate))
        stagnant = 0 if history[-1]["best"] < history[-2]["best"] else stagnant + 1
        rate = _rate(rate, stagnant, settings)
    choice = ladder.option[np.arange(len(choices.layers)), population[damages.argmin()]]
    made = settings.population + (len(history) - 1) * (settings.population - settings.elites)
    damage, size = float(total_damage(choices, choice)), float(total_size(choices, choice))
    return GeneticResult(choice, damage, size, tuple(history), made, len(history) <= settings.generations)


def gap_to_optimal(result: GeneticResult, solution: Solution) -> float:
    """Return by what share the result's damage lies above the optimum. Raises `AssertionError` if it lies below.

    Where the solution is not proved exact, what lies between it and its bound is no contradiction.
    """
    scale = max(abs(solution.damage), float(np.finfo(np.float64).tiny))
    gap = (result.damage - solution.damage) / scale
    doubt = 0.0 if solution.exact else (solution.damage - solution.lower_bound) / scale
    if gap < -(ROUNDING + doubt):
        raise AssertionError(
            f"damage {result.damage:.17g} is below the optimum {solution.damage:.17g}: one of them is wrong"
        )
    return max(gap, 0.0) if solution.exact else gap
