"""The Lagrangian relaxation: its bound is the largest there is, and the choice near it fits."""

import numpy as np
import pytest

from bitplan.search.knapsack.choices import reachable, total, total_damage, total_size
from bitplan.search.knapsack.lagrangian import at, dual_of, good_choice, problem_of
from tests.unit.search.test_exact import choices, large, least_of_all, random_choices


@pytest.mark.parametrize("seed", range(60))
def test_the_bound_is_the_maximum_over_all_prices_and_below_the_least_damage(seed):
    made, budget = random_choices(seed)
    problem = problem_of(made, budget)
    dual = dual_of(problem)
    prices = dual.multiplier * np.array([0, 0.5, 0.9, 0.999, 1, 1.001, 1.1, 2, 10])
    bounds = [(problem.damage + price * problem.extra).min(axis=1).sum() - price * problem.room for price in prices]
    assert max(bounds) == pytest.approx(dual.bound, rel=1e-9, abs=1e-9)
    assert dual.bound <= least_of_all(made, budget) * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("seed", range(60))
def test_both_choices_have_the_cost_of_the_bound_on_either_side_of_the_room(seed):
    made, budget = random_choices(seed)
    problem = problem_of(made, budget)
    dual = dual_of(problem)
    for choice in (dual.within, dual.beyond):
        cost = total(problem.damage, choice) + dual.multiplier * (total(problem.extra, choice) - problem.room)
        assert dual.multiplier == 0 or cost == pytest.approx(dual.bound, rel=1e-9, abs=1e-9)
    assert total(problem.extra, dual.within) <= problem.room
    assert np.all(at(problem.extra, dual.within) <= at(problem.extra, dual.beyond))


@pytest.mark.parametrize("seed", range(60))
def test_the_good_choice_fits_and_no_single_change_makes_it_better(seed):
    made, budget = random_choices(seed)
    problem = problem_of(made, budget)
    choice = good_choice(problem, dual_of(problem))
    assert total(problem.extra, choice) <= problem.room and np.isfinite(total_damage(made, choice))
    better = problem.damage < at(problem.damage, choice)[:, None]
    room = problem.room - total(problem.extra, choice)
    assert not (better & (problem.extra - at(problem.extra, choice)[:, None] <= room)).any()


def test_the_good_choice_of_a_large_table_is_near_the_bound():
    made = choices(*large(20_000))
    low, high = reachable(made)
    budget = low + 0.3 * (high - low)
    problem = problem_of(made, budget)
    choice = good_choice(problem, dual_of(problem))
    assert total_size(made, choice) <= budget and total_damage(made, choice) <= dual_of(problem).bound * (1 + 1e-4)
