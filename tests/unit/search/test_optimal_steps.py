"""Steps that correct an optimal plan and races that refine it, on tables whose truth is known."""

from itertools import product

import numpy as np
import pytest

from bitplan.search.knapsack.choices import Choices, total_size
from bitplan.search.knapsack.exact import optimal
from bitplan.search.knapsack.levels import levels_of, neighbours
from bitplan.search.optimal.correction import corrected, prospect, steps_around
from bitplan.search.optimal.refinement import RefinementSettings, offspring_of, refine

RNG = np.random.default_rng


def table(layers: int = 6, options: int = 4, seed: int = 0) -> Choices:
    """A table whose damages fall and whose sizes rise with the option."""
    rng = RNG(seed)
    size = np.cumsum(rng.integers(1, 9, (layers, options)), axis=1).astype(float)
    damage = np.flip(np.cumsum(rng.random((layers, options)), axis=1), axis=1)
    return Choices([f"l{i}" for i in range(layers)], [f"f{k}" for k in range(options)], damage, size)


def test_levels_leave_out_what_a_smaller_option_matches():
    made = Choices(["a"], list("wxyz"), np.array([[3.0, 3.5, 1.0, np.inf]]), np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert levels_of(made) == [[0, 2]] and neighbours([[0, 2]], np.array([0])) == [[2]]


def test_steps_whose_gain_is_nearest_to_the_price_of_size_come_first():
    choices = table(12)
    budget = float(choices.size.mean(axis=1).sum())
    steps = steps_around(choices, optimal(choices, budget).choice, budget, 5)
    assert len(steps) == 5
    every = steps_around(choices, optimal(choices, budget).choice, budget, 1000)
    assert every[:5] == steps and len(every) > 12


@pytest.mark.parametrize("seed", range(12))
def test_correction_finds_the_best_of_all_single_steps_when_damages_interact(seed):
    choices = table(seed=seed)
    budget = float(choices.size.mean(axis=1).sum())
    start = optimal(choices, budget).choice
    rng = RNG(seed)
    pairs = rng.random((6, 4, 6, 4))

    def measure(choice) -> np.ndarray:
        alone = sum(choices.damage[i, k] for i, k in enumerate(choice))
        together = sum(pairs[i, choice[i], j, choice[j]] for i in range(6) for j in range(i))
        return np.full(3, alone + together)

    found, evaluations = corrected(choices, start, budget, measure, 100)
    assert total_size(choices, found) <= budget and evaluations > 1
    base = measure(start).mean()
    change = {(i, int(k)): 0.0 for i, k in enumerate(start)}
    for i, options in enumerate(neighbours(levels_of(choices), start)):
        for k in options:
            single = start.copy()
            single[i] = k
            change[i, k] = measure(single).mean() - base
    every = [np.array(made) for made in product(*([k for j, k in change if j == i] for i in range(6)))]
    within = [made for made in every if total_size(choices, made) <= budget]

    def expected(made) -> float:
        return sum(change[i, int(k)] for i, k in enumerate(made))

    # Of all combinations of the measured steps that fit, it is the best one by what was measured.
    assert expected(found) == pytest.approx(min(map(expected, within)), abs=1e-12)
    # Steps are right by themselves: no single one that fits would be better than what the steps together promise.
    singles = [made for made in within if (made != start).sum() == 1]
    assert all(expected(found) <= measure(made).mean() - base + 1e-12 for made in singles)
    if (found != start).sum() == 1:
        assert measure(found).mean() == pytest.approx(min(measure(made).mean() for made in singles))


def test_a_table_that_is_wrong_by_a_factor_in_place_is_put_right():
    # Layer 0 costs ten times what the table says once the others are quantized: the true optimum gives it more bits.
    size = np.tile(np.array([1.0, 2.0, 3.0]), (4, 1))
    told = np.tile(np.array([4.0, 2.0, 1.0]), (4, 1)) * np.array([[1.0], [1.1], [1.2], [1.3]])
    choices = Choices(list("abcd"), list("xyz"), told, size)
    true = told.copy()
    true[0] *= 10

    def measure(choice) -> np.ndarray:
        return np.array([sum(true[i, k] for i, k in enumerate(choice))] * 2)

    start = optimal(choices, 8.0).choice
    found, _ = corrected(choices, start, 8.0, measure, 100)
    assert measure(found).mean() < measure(start).mean() and total_size(choices, found) <= 8.0


@pytest.mark.parametrize(
    ("factor", "noise", "worthwhile"),
    [(10.0, 1e-3, True), (10.0, 100.0, False), (1.0, 1e-9, False)],
    ids=["wrong table, quiet text", "wrong table, noisy text", "right table"],
)
def test_correction_is_worthwhile_where_the_text_could_show_what_it_gains(factor, noise, worthwhile):
    choices = table(12)
    budget = float(choices.size.mean(axis=1).sum())
    start = optimal(choices, budget).choice
    true, rng, evaluated = choices.damage.copy(), RNG(1), []
    true[0] *= factor

    def measure(choice) -> np.ndarray:
        evaluated.append(choice)
        return np.array([sum(true[i, k] for i, k in enumerate(choice))] * 2)

    def judge(choice) -> np.ndarray:
        return measure(choice)[0] + noise * rng.normal(size=8)

    found = prospect(choices, start, budget, measure, judge, 24)
    assert found.worthwhile == worthwhile and len(evaluated) == 3
    # The share by which the plan's KL is off, times what each step changes, less what the table says that the step costs.
    misfit = abs(measure(start)[0] / choices.damage[np.arange(12), start].sum() - 1)
    steps = steps_around(choices, start, budget, 24)
    gains = [misfit * abs(step.damage) - max(0.0, step.cost) for step in steps]
    assert found.could_gain == pytest.approx(sum(gain for gain in gains if gain > 0), abs=1e-12)


def test_an_optimum_without_another_level_has_nothing_to_correct():
    one = Choices(["a"], ["x"], np.array([[1.0]]), np.array([[1.0]]))
    assert not prospect(one, np.array([0]), 1.0, None, None, 24).worthwhile


def test_offspring_differ_from_the_incumbent_and_keep_the_size():
    choices = table(20)
    budget = float(choices.size.mean(axis=1).sum())
    start = optimal(choices, budget).choice
    made = offspring_of(choices, start, budget, RefinementSettings(), RNG(0))
    assert len(made) == 16 and all((one != start).any() and total_size(choices, one) <= budget for one in made)
    assert len({one.tobytes() for one in made}) == 16


def test_a_race_finds_what_the_table_hides_and_ends_when_nothing_is_better():
    choices = table(8)
    budget = float(choices.size.mean(axis=1).sum())
    hidden = choices.damage * RNG(1).lognormal(size=(8, 1))
    noise = RNG(2).random(16)

    def measure(choice, windows: int) -> np.ndarray:
        return sum(hidden[i, k] for i, k in enumerate(choice)) + noise[:windows]

    start = optimal(choices, budget).choice
    found, generations = refine(choices, start, budget, measure, 16, RefinementSettings(generations=50))
    best = min(
        sum(hidden[i, k] for i, k in enumerate(choice))
        for choice in product(range(4), repeat=8)
        if sum(choices.size[i, k] for i, k in enumerate(choice)) <= budget
    )
    assert measure(found, 1)[0] < measure(start, 1)[0] and generations < 50
    assert measure(found, 1)[0] - noise[0] <= 1.1 * best


def test_a_race_without_swaps_keeps_the_plan():
    one = Choices(["a"], ["x"], np.array([[1.0]]), np.array([[1.0]]))
    found, generations = refine(
        one, np.array([0]), 1.0, lambda choice, windows: np.ones(windows), 4, RefinementSettings()
    )
    assert found.tolist() == [0] and generations == 1
