"""The genetic search: what no generation may do, what it reaches, and its figure."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.search.genetic.algorithm import HISTORY, GeneticResult, GeneticSettings, gap_to_optimal, search
from bitplan.search.genetic.figure import draw_history
from bitplan.search.knapsack.choices import Choices, limit_of, reachable, total_damage, total_size, weighted
from bitplan.search.knapsack.exact import optimal

FOREVER = {"stop_after": 10**6}


def choices(damage, size) -> Choices:
    damage = np.asarray(damage, dtype=float)
    layers, options = (
        tuple(f"{word}{i}" for i in range(n)) for word, n in zip(("layer", "bits"), damage.shape, strict=True)
    )
    return Choices(layers, options, damage, np.broadcast_to(size, damage.shape))


def model(layers: int = 196) -> tuple[Choices, np.ndarray, np.ndarray]:
    """Weighted damages of A4 and A8, sizes as shares of W8A16, the importance weights and the ratios A4 / A8."""
    rng = np.random.default_rng(0)
    small, ratio = rng.lognormal(-8, 1.5, layers), rng.lognormal(np.log(16), 0.5, layers)
    edge = np.where(np.minimum(np.arange(layers), np.arange(layers)[::-1]) < 7, 1.5, 1.0)
    scale = np.log1p(ratio * edge)
    importance = 0.5 + 1.5 * (scale - scale.min()) / np.ptp(scale)
    made = choices(np.column_stack((small * ratio, small)), np.array([8, 12]) / 12 / layers)
    return weighted(made, importance), importance, ratio


def small_model(seed: int, layers: int = 10) -> Choices:
    rng = np.random.default_rng(seed)
    return choices(-np.sort(-rng.lognormal(0, 1.5, (layers, 2)), axis=1), (4, 8))


def palette(seed: int = 0, layers: int = 40) -> tuple[Choices, float]:
    """Four formats with two of the damages forbidden, sizes in bits, and the budget of 5 bits per parameter."""
    rng = np.random.default_rng(seed)
    parameters, bits = rng.integers(1, 9, (layers, 1)) * 1024, np.array([4.25, 16, 3.5, 8.25])
    damage = rng.lognormal(0, 1.5, (layers, 1)) * 4.0**-bits
    damage[0, 2] = damage[5, 1] = np.inf
    return choices(damage, parameters * bits), 5.0 * parameters.sum()


def column(result: GeneticResult, name: str) -> list[float]:
    return [row[name] for row in result.history]


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("budget", [8 / 12, 0.7, 0.75, 0.9, 1.0])
def test_nobody_is_ever_over_the_budget(budget, fill):
    made, importance, ratio = model()
    result = search(made, budget, GeneticSettings(fill=fill), importance, ratio)
    assert max(column(result, "largest_size")) <= limit_of(budget) and result.size <= limit_of(budget)


@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_ever_over_an_average_of_bits_with_four_formats(seed):
    made, budget = palette(seed)
    result = search(made, budget, GeneticSettings(seed=seed))
    assert max(column(result, "largest_size")) <= budget
    assert np.isfinite(result.damage) and 0 <= gap_to_optimal(result, optimal(made, budget)) < 0.5


def test_four_formats_come_close_to_the_optimum_with_a_larger_search():
    made, budget = palette()
    result = search(made, budget, GeneticSettings(population=100, generations=300, **FOREVER))
    assert gap_to_optimal(result, optimal(made, budget)) < 0.05


def test_the_result_is_the_best_of_the_history_and_its_figures_are_those_of_its_choice():
    made, importance, ratio = model()
    result = search(made, 0.75, None, importance, ratio)
    assert result.damage == total_damage(made, result.choice) == pytest.approx(min(column(result, "best")))
    assert result.size == total_size(made, result.choice) == pytest.approx(result.history[-1]["size"])


def test_the_same_seed_gives_the_same_result_and_another_seed_another_way():
    made, importance, ratio = model()
    first, again, other = (search(made, 0.75, GeneticSettings(seed=s), importance, ratio) for s in (3, 3, 4))
    assert first.history == again.history and first.choice.tolist() == again.choice.tolist()
    assert first.history != other.history


@pytest.mark.parametrize("fill", [True, False])
def test_the_best_is_never_lost(fill):
    made, importance, ratio = model()
    best = column(search(made, 0.75, GeneticSettings(fill=fill), importance, ratio), "best")
    assert all(later <= earlier for earlier, later in pairwise(best)) and best[-1] < best[0]


def test_small_models_are_solved_exactly_in_most_of_20_runs():
    gaps = []
    for seed in range(20):
        made = small_model(seed)
        gaps.append(gap_to_optimal(search(made, 60, GeneticSettings(seed=seed)), optimal(made, 60)))
    assert sum(gap < 1e-12 for gap in gaps) >= 15


def test_196_layers_end_near_the_optimum():
    made, importance, ratio = model()
    best = optimal(made, 0.75)
    gaps = [
        gap_to_optimal(search(made, 0.75, GeneticSettings(seed=seed), importance, ratio), best) for seed in range(20)
    ]
    assert np.mean(gaps) < 0.07 and max(gaps) < 0.2


def test_a_larger_search_ends_nearer():
    made, importance, ratio = model()
    best, large = optimal(made, 0.75), GeneticSettings(population=200, generations=300, **FOREVER)
    assert gap_to_optimal(search(made, 0.75, large, importance, ratio), best) < 0.02


def test_room_that_is_left_is_filled_unless_that_is_switched_off():
    made, importance, ratio = model()
    filled, plain = (search(made, 0.9, GeneticSettings(fill=fill), importance, ratio) for fill in (True, False))
    assert filled.damage < plain.damage and filled.size > 0.9 - 4 / 12 / 196


def test_the_search_stops_after_generations_without_progress():
    flat = choices([[1, 1]] * 8, (4, 8))
    result = search(flat, 64, GeneticSettings(generations=25, stop_after=4))
    assert result.stopped_early and len(result.history) == 1 + 4
    assert result.evaluations == 30 + 4 * (30 - GeneticSettings().elites)


def test_a_search_that_runs_to_its_end_has_a_row_for_each_generation():
    result = search(small_model(0), 60, GeneticSettings(generations=25, **FOREVER))
    assert not result.stopped_early and column(result, "generation") == list(range(26))
    assert len(search(small_model(0), 60, GeneticSettings(generations=0)).history) == 1


def test_the_rate_falls_on_progress_rises_on_stagnation_and_stays_within_its_bounds():
    flat = choices([[1, 1]] * 8, (4, 8))
    rates = column(search(flat, 64, GeneticSettings(**FOREVER)), "rate")
    # The rate of a row made it: three rows without progress come before the first change.
    assert rates[:7] == pytest.approx([0.12, 0.12, 0.12, 0.12, 0.18, 0.27, 0.3]) and max(rates) == 0.3
    made, importance, ratio = model()
    result = search(made, 0.75, GeneticSettings(generations=200, **FOREVER), importance, ratio)
    rates, best = column(result, "rate"), column(result, "best")
    assert min(rates) >= 0.05 and max(rates) <= 0.3
    better = [i for i in range(1, 200) if best[i] < best[i - 1]]
    assert better and all(rates[i + 1] == max(0.95 * rates[i], 0.05) for i in better)


def test_the_history_has_its_columns_and_no_nan():
    made, budget = palette()
    for row in search(made, budget).history:
        assert tuple(row) == HISTORY and np.isfinite(list(row.values())).all()
        assert 0 <= row["diversity"] < 1 and row["best"] <= row["mean"] and row["size"] <= row["largest_size"]


def test_choices_handed_in_are_where_the_search_starts():
    made, importance, ratio = model()
    best = optimal(made, 0.75)
    result = search(made, 0.75, GeneticSettings(generations=1), importance, ratio, [best.choice])
    assert result.history[0]["best"] == pytest.approx(best.damage) and gap_to_optimal(result, best) < 1e-9


def test_choices_handed_in_that_are_too_large_are_brought_within_the_budget():
    made, importance, ratio = model()
    everything_large = np.ones(196, dtype=int)
    result = search(made, 0.75, GeneticSettings(), importance, ratio, [everything_large])
    assert max(column(result, "largest_size")) <= limit_of(0.75)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([[0, 1]], "GENETIC-BAD-SEEDS"),
        ([[0] * 10] * 31, "GENETIC-BAD-SEEDS.*at most 30"),
        ([[0] * 9 + [2]], "GENETIC-BAD-SEEDS.*seed 0, layer layer9"),
    ],
)
def test_choices_handed_in_that_are_none_are_refused(seeds, message):
    with pytest.raises(UserError, match=message):
        search(small_model(0), 60, seeds=seeds)


def test_an_option_that_is_not_allowed_is_never_chosen():
    made = choices([[5, np.inf], [np.inf, 1], [3, 1], [4, 2]], (4, 8))
    result = search(made, 20, GeneticSettings(generations=40))
    assert result.choice[0] == 0 and result.choice[1] == 1 and result.damage == optimal(made, 20).damage


def test_layers_of_the_largest_importance_do_not_mutate():
    made = small_model(0)
    settings = GeneticSettings(generations=30, fill=False, **FOREVER)
    still = search(made, 80, settings, importance=np.full(10, 2.0), seeds=[np.zeros(10, int)] * 30)
    moving = search(made, 80, settings, importance=np.full(10, 0.5), seeds=[np.zeros(10, int)] * 30)
    assert still.choice.tolist() == [0] * 10 and moving.choice.any()


def test_genes_of_sensitive_layers_go_up_more_often():
    # All layers gain the same by the larger option, so nothing but mutation tells them apart.
    made, ratio = choices([[2, 1]] * 400, (4, 8)), np.arange(400.0)
    settings = GeneticSettings(generations=60, fill=False, **FOREVER)
    choice = search(made, 3200, settings, ratio=ratio).choice
    assert choice[200:].mean() > choice[:200].mean() + 0.1


def test_a_budget_that_no_choice_holds_is_refused():
    low, high = reachable(small_model(0))
    with pytest.raises(UserError, match=f"allow {low:.0f} to {high:.0f}"):
        search(small_model(0), low - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population": 2}, "GENETIC-OUT-OF-RANGE.*population"),
        ({"mutation": 1.5}, "GENETIC-OUT-OF-RANGE.*mutation"),
        ({"elite_share": 1.0}, "GENETIC-OUT-OF-RANGE.*elite_share"),
        ({"least_mutation": 0.5}, "GENETIC-OUT-OF-RANGE.*least_mutation"),
        ({"on_progress": 1.2}, "GENETIC-OUT-OF-RANGE.*on_progress"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        search(small_model(0), 60, GeneticSettings(**change))


def test_values_that_do_not_fit_the_layers_are_refused():
    with pytest.raises(UserError, match="GENETIC-BAD-INPUT"):
        search(small_model(0), 60, importance=[1, 1, 1])
    with pytest.raises(UserError, match="GENETIC-BAD-INPUT.*layer2"):
        search(small_model(0), 60, ratio=[1, 1, np.nan] + [1] * 7)


def test_a_result_better_than_the_optimum_is_an_error():
    made = small_model(0)
    result, best = search(made, 60), optimal(made, 60)
    with pytest.raises(AssertionError, match="below the optimum"):
        gap_to_optimal(replace(result, damage=best.damage * (1 - 1e-8)), best)
    unproved = replace(best, exact=False, lower_bound=0.9 * best.damage)
    assert gap_to_optimal(replace(result, damage=0.95 * best.damage), unproved) == pytest.approx(-0.05)


def test_the_figure_shows_its_lines_and_has_the_same_bytes_for_the_same_history(tmp_path):
    made, importance, ratio = model()
    history = search(made, 0.75, None, importance, ratio).history
    for name in ("a.svg", "b.svg"):
        draw_history(history, optimal(made, 0.75).damage, tmp_path / name, "Genetic search", unit="squared error")
    text = (tmp_path / "a.svg").read_text()
    assert (tmp_path / "b.svg").read_text() == text
    for words in (
        "best damage",
        "mean damage",
        "exact optimum",
        "damage (squared error)",
        "generation",
        "Genetic search",
    ):
        assert words in text
    assert "diversity (1 - share of the commonest option)" in text
