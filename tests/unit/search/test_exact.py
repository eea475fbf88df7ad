"""The table of choices, and the exact search over it: against every choice there is, with bounds that hold."""

from itertools import pairwise, product

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.search.knapsack.choices import Choices, as_choice, limit_of, reachable, total_damage, total_size, weighted
from bitplan.search.knapsack.exact import can_sort, optimal


def choices(damage, size) -> Choices:
    damage = np.asarray(damage, dtype=float)
    layers, options = (
        tuple(f"{word}{i}" for i in range(n)) for word, n in zip(("layer", "bits"), damage.shape, strict=True)
    )
    return Choices(layers, options, damage, np.broadcast_to(size, damage.shape))


def random_choices(seed: int) -> tuple[Choices, float]:
    """A table of up to 8 layers x 4 options of one of five shapes, a fifth of the options forbidden, and a budget."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 9), rng.integers(1, 5)
    levels = np.arange(1.0, shape[1] + 1)
    size = [
        lambda: rng.random(shape) * 10,
        lambda: rng.integers(0, 6, shape).astype(float),
        lambda: rng.integers(0, 4, shape) * 0.1,
        lambda: rng.random((shape[0], 1)) * levels,
        lambda: np.tile(levels, (shape[0], 1)),
    ][seed % 5]()
    damage = [rng.lognormal(0, 2, shape), rng.integers(0, 4, shape).astype(float), 11 - size][seed % 3]
    forbidden = (rng.random(shape) < 0.2) & (np.arange(shape[1]) != rng.integers(shape[1]))
    made = choices(np.where(forbidden, np.inf, damage), size)
    low, high = reachable(made)
    return made, low + (high - low) * (0.0 if seed % 7 == 0 else rng.random())


def least_of_all(made: Choices, budget: float) -> float:
    every = np.array(list(product(range(len(made.options)), repeat=len(made.layers))))
    return total_damage(made, every)[total_size(made, every) <= limit_of(budget)].min()


@pytest.mark.parametrize("seed", range(200))
def test_no_choice_within_the_budget_has_less_damage(seed):
    made, budget = random_choices(seed)
    found = optimal(made, budget)
    assert found.damage == pytest.approx(least_of_all(made, budget), rel=1e-10) and found.exact
    assert found.size == total_size(made, found.choice) <= limit_of(budget)
    assert found.lower_bound <= found.damage == total_damage(made, found.choice)


@pytest.mark.parametrize("seed", range(20))
def test_sorting_and_the_general_search_find_the_same(seed):
    rng = np.random.default_rng(seed)
    damage = rng.lognormal(0, 1, (60, 2))
    two = choices(damage, (4, 8))
    # A third option that no layer may have keeps the same problem from being sorted.
    three = choices(np.column_stack((damage, np.full(60, np.inf))), (4, 8, 9))
    assert can_sort(two) and not can_sort(three)
    budget = 240 + 4 * rng.integers(60) + 1.5
    assert optimal(two, budget).choice.tolist() == optimal(three, budget).choice.tolist()


def test_sorting_takes_the_layers_that_gain_most_and_leaves_room_that_helps_nobody():
    made = choices([[5, 1], [9, 1], [3, 3], [1, 2], [7, 1]], (4, 8))
    assert optimal(made, 20 + 2 * 4).choice.tolist() == [0, 1, 0, 0, 1]
    assert optimal(made, 1000).choice.tolist() == [1, 1, 0, 0, 1]


def test_sorting_respects_options_that_are_not_allowed_and_any_order_of_the_options():
    made = choices([[2, np.inf], [1, 50], [np.inf, 3], [1, 40]], (8, 4))
    assert can_sort(made) and optimal(made, 24).choice.tolist() == [0, 0, 1, 1]


def test_among_equal_gains_the_first_layers_of_the_model_get_the_larger_option():
    assert optimal(choices([[2, 1]] * 5, (4, 8)), 28).choice.tolist() == [1, 1, 0, 0, 0]


def test_of_two_options_with_equal_damage_the_smaller_is_chosen():
    assert optimal(choices([[1, 1, 5], [2, 0, 0]], (8, 6, 4)), 100).choice.tolist() == [1, 2]


def test_a_budget_for_everything_is_used_without_a_gap():
    found = optimal(choices([[3, 1, 2], [9, 5, 4]], (2, 4, 8)), 1e9)
    assert found.choice.tolist() == [1, 2] and found.gap == 0 and found.lower_bound == found.damage == 5


def test_what_indivisible_steps_leave_lies_above_the_relaxed_bound_and_is_no_gap():
    # One layer may go up: 3 of damage. Half a layer more would fit: the bound is 2.5.
    found = optimal(choices([[2, 1]] * 3, (0, 2)), 3)
    assert found.damage == 5 and found.relaxed_bound == pytest.approx(4.5)
    assert found.exact and found.lower_bound == 5 and found.gap == 0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_a_model_of_250_layers_and_8_formats_is_solved_to_the_end(share):
    rng = np.random.default_rng(1)
    bits = np.array([2.25, 3.25, 4.25, 4.5, 5.5, 6.5, 8.5, 16])
    size = rng.choice([2**20, 3 * 2**20, 2**22, 2**27], p=[0.4, 0.4, 0.19, 0.01], size=(250, 1)) * bits
    made = choices(rng.lognormal(-7, 1.5, (250, 1)) * 4.0**-bits * rng.lognormal(0, 0.3, (250, 8)), size)
    low, high = reachable(made)
    found = optimal(made, low + share * (high - low))
    assert found.exact and 0 <= found.gap < 0.01 and found.size <= low + share * (high - low)


def test_the_damage_never_rises_with_the_budget():
    made, _ = random_choices(3)
    damages = [optimal(made, budget).damage for budget in np.linspace(*reachable(made), 30)]
    assert all(later <= earlier for earlier, later in pairwise(damages))


def test_a_search_that_is_cut_off_says_so_and_keeps_its_bound(monkeypatch):
    rng = np.random.default_rng(0)
    size = rng.random((12, 3))
    made = choices(1.2 - size, size)
    whole = optimal(made, 5)
    monkeypatch.setattr("bitplan.search.knapsack.exact.MOST_STATES", 5)
    cut = optimal(made, 5)
    assert whole.exact and not cut.exact and cut.size <= limit_of(5)
    assert cut.lower_bound <= whole.damage <= cut.damage and cut.gap > 0


def large(layers: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Damages and sizes of layers of a few shapes in 12 formats of 2 to 16 bits."""
    rng, bits = np.random.default_rng(seed), np.linspace(2, 16, 12)
    size = rng.choice([2**20, 2**22, 3 * 2**20], (layers, 1)) * bits
    return rng.lognormal(-9, 1.5, (layers, 1)) * 4.0**-bits * rng.lognormal(0, 0.3, (layers, 12)), size


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_20_000_layers_of_12_formats_are_solved_to_a_gap_below_a_hundredth_of_a_percent(share):
    made = choices(*large(20_000))
    low, high = reachable(made)
    found = optimal(made, low + share * (high - low))
    assert found.size <= limit_of(low + share * (high - low)) and 0 <= found.gap < 1e-4


def test_equal_layers_are_told_apart_by_nothing_and_take_no_longer():
    damage, size = large(1)
    made = choices(np.repeat(damage, 20_000, axis=0), np.repeat(size, 20_000, axis=0))
    low, high = reachable(made)
    found = optimal(made, low + 0.4 * (high - low))
    assert found.gap < 1e-4 and np.ptp(found.choice) <= 1


def test_a_layer_whose_step_is_the_whole_gap_is_given_both_sides_of_it_in_turn(monkeypatch):
    damage, size = large(2_000)
    size[0], damage[0] = 2_000 * size[0], 500 * damage[0]
    made = choices(damage, size)
    low, high = reachable(made)
    # As where thousands of layers are open: dynamic programming comes to nothing, the parts alone are left.
    monkeypatch.setattr("bitplan.search.knapsack.exact.MOST_WORK", 0)
    budgets = [low + share * (high - low) for share in (0.2, 0.35, 0.5, 0.8)]
    found = [optimal(made, budget) for budget in budgets]
    monkeypatch.setattr("bitplan.search.knapsack.exact.MOST_BRANCHES", 0)
    whole = [optimal(made, budget) for budget in budgets]
    assert max(each.gap for each in whole) > 0.01 > 1e-3 > max(each.gap for each in found)
    assert all(
        part.damage <= one.damage and part.lower_bound >= one.lower_bound
        for part, one in zip(found, whole, strict=True)
    )


def test_a_budget_that_no_choice_holds_is_refused_with_the_sizes_that_can_be_reached():
    with pytest.raises(UserError, match=r"SEARCH-TARGET-OUT-OF-REACH.*8 to 16.*Raise the budget to 8"):
        optimal(choices([[2, 1]] * 2, (4, 8)), 7)
    with pytest.raises(UserError, match="SEARCH-TARGET-OUT-OF-REACH"):
        optimal(choices([[2, 1]] * 2, (4, 8)), np.nan)


def test_rounding_of_a_sum_is_no_excess():
    made = choices([[2, 1]] * 10, (0.1, 0.2))
    assert optimal(made, 1.0).choice.tolist() == [0] * 10 and optimal(made, 2.0).choice.tolist() == [1] * 10


@pytest.mark.parametrize(
    ("damage", "size", "message"),
    [
        ([[1, np.nan], [1, 1]], (4, 8), "KNAPSACK-BAD-VALUE.*layer layer0, option bits1"),
        ([[1, 1], [-1, 1]], (4, 8), "KNAPSACK-BAD-VALUE.*layer layer1, option bits0"),
        ([[1, 1], [1, 1]], (4, -8), r"KNAPSACK-BAD-VALUE.*layer layer0, option bits1.*and 1 more"),
        ([[1, 1], [1, 1]], (4, np.inf), "KNAPSACK-BAD-VALUE.*option bits1"),
        ([[1, 1], [np.inf, np.inf]], (4, 8), "KNAPSACK-NO-OPTION.*layer1"),
    ],
)
def test_a_table_that_cannot_be_searched_is_refused_by_layer_and_option(damage, size, message):
    with pytest.raises(UserError, match=message):
        choices(damage, size)


def test_a_table_of_another_shape_than_its_names_is_refused():
    with pytest.raises(UserError, match="KNAPSACK-BAD-SHAPE"):
        Choices(("a",), ("x", "y"), np.ones((1, 3)), np.ones((1, 2)))
    with pytest.raises(UserError, match="KNAPSACK-BAD-SHAPE"):
        Choices((), ("x",), np.ones((0, 1)), np.ones((0, 1)))


def test_names_of_options_become_a_choice_and_weights_multiply_the_damage():
    made = choices([[2, 1], [4, 3]], (4, 8))
    assert as_choice(made, ["bits1", "bits0"]).tolist() == [1, 0]
    assert weighted(made, [0.5, 2]).damage.tolist() == [[1, 0.5], [8, 6]]
    with pytest.raises(UserError, match="KNAPSACK-NO-OPTION.*'A9'"):
        as_choice(made, ["bits1", "A9"])
    with pytest.raises(UserError, match="KNAPSACK-BAD-VALUE.*layer1"):
        weighted(made, [1, 0])
    with pytest.raises(UserError, match="KNAPSACK-BAD-SHAPE"):
        weighted(made, [1, 1, 1])


def test_totals_of_a_population_are_those_of_its_rows():
    made = choices([[2, 1], [4, 3], [6, 5]], (4, 8))
    rows = np.array([[0, 0, 0], [1, 0, 1]])
    assert total_damage(made, rows).tolist() == [12, 10] and total_size(made, rows).tolist() == [12, 20]
    assert total_damage(made, rows[1]) == 10
