"""The adaptive search: what each stage keeps, when it stops, what it costs."""

import itertools
import math
import random

import pytest

from bitplan.core.errors import UserError
from bitplan.models.layers import Layer, ModelInfo
from bitplan.search.adaptive.algorithm import AdaptiveQuantizationSearch, AdaptiveSettings

ALPHAS = {f"layers.{i}": float(alpha) for i, alpha in enumerate((8, 7, 6, 5, 4, 3, 2))}


def info() -> ModelInfo:
    layers = tuple(Layer(name, "mlp_up", (1, 32), i, "", False) for i, name in enumerate(ALPHAS))
    return ModelInfo(
        "here",
        "f",
        "A",
        "llama",
        32 * len(layers),
        (*layers, Layer("lm_head", "lm_head", (1, 32), -1, "", True, tied=True)),
    )


def searching(damage: dict[str, float], alphas=ALPHAS, **settings) -> AdaptiveQuantizationSearch:
    """A search whose perplexity is 100 plus the damage of every quantized layer; counts its calls in `.calls`."""
    calls = []

    def ppl(plan):
        calls.append(plan)
        return 100 + sum(damage[made.wq] for name, made in plan.layers.items() if made.wq in damage)

    search = AdaptiveQuantizationSearch(
        info(), alphas, ppl, AdaptiveSettings(**{"step_size": 1.0, "target_avg_bits": 1.0, **settings})
    )
    search.calls = calls
    return search


def formats(plan) -> list[str]:
    return [plan.of(name).wq for name in ALPHAS]


def test_each_stage_keeps_the_last_plan_that_held():
    # 10 % allow 3 layers at 3 % each in mxfp4; then one more percent allows 1 layer at 1 % in mxfp8.
    plan = searching({"mxfp4": 3.0, "mxfp8": 1.0}).run()
    assert formats(plan) == ["mxfp4"] * 3 + ["mxfp8"] + ["bf16"] * 3
    assert plan.summary["mxfp4_threshold"] == 6.0 and plan.summary["mxfp8_threshold"] == 5.0
    assert plan.summary["ppl_increase"] == pytest.approx(0.10)


def test_the_result_holds_the_limit_and_the_history_shows_the_plan_that_broke_it():
    summary = searching({"mxfp4": 3.0, "mxfp8": 1.0}).run().summary
    assert summary["ppl_increase"] <= summary["ppl_threshold"]
    at_limit = [
        step for step in summary["search_history"] if step["stage"] == "mxfp4" or step.get("mxfp4_threshold") == 6.0
    ]
    assert [step["stage"] for step in at_limit] == ["mxfp4"] * 4 + ["mxfp8"] * 2
    assert summary["search_history"][3]["ppl_increase"] == pytest.approx(0.12)
    assert summary["search_history"][0]["layers"] == {"mxfp4": 1, "mxfp8": 0, "bf16": 6}


def test_the_baseline_is_the_unquantized_model():
    search = searching({"mxfp4": 3.0, "mxfp8": 1.0})
    summary = search.run().summary
    assert summary["base_ppl"] == 100 and not any(made.quantized for made in search.calls[0].layers.values())


def test_where_stage_1_keeps_nothing_stage_2_starts_at_the_largest_alpha():
    plan = searching({"mxfp4": 50.0, "mxfp8": 4.0}).run()
    assert formats(plan) == ["mxfp8"] * 2 + ["bf16"] * 5 and plan.summary["mxfp4_threshold"] is None


@pytest.mark.parametrize("search", ["linear", "bisect"])
@pytest.mark.parametrize("step", [0.3, 0.8, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("target", [1.0, 6.0, 11.0])
def test_with_a_constant_metric_every_layer_ends_in_the_smallest_format(search, step, target):
    plan = searching({}, step_size=step, target_avg_bits=target, search=search).run()
    assert formats(plan) == ["mxfp4"] * 7
    assert plan.summary["mxfp4_threshold"] == plan.summary["mxfp8_threshold"] == 2.0
    assert plan.summary["stopped"] == {"mxfp4": "smallest alpha", "mxfp8": "smallest alpha"}
    assert plan.summary["target_reached"] == (target > 4.25)


def random_search(seed: int, **settings) -> AdaptiveQuantizationSearch:
    """A search over random alphas, whose perplexity is 100 plus the damages of the quantized layers, all random."""
    rng = random.Random(seed)
    alphas = {name: rng.uniform(1, 9) for name in ALPHAS}
    damage = {
        name: {"mxfp8": (eight := rng.choice((0.0, rng.uniform(0, 3)))), "mxfp4": eight + rng.uniform(0, 9)}
        for name in ALPHAS
    }

    def ppl(plan):
        return 100 + sum(damage[name].get(plan.of(name).wq, 0.0) for name in ALPHAS)

    return AdaptiveQuantizationSearch(info(), alphas, ppl, AdaptiveSettings(step_size=0.7, **settings))


@pytest.mark.parametrize("search", ["linear", "bisect"])
@pytest.mark.parametrize("seed", range(60))
def test_more_aggressive_settings_never_give_more_bits(seed, search):
    bits = []
    for limit, target in ((0.01, 12.0), (0.03, 10.0), (0.05, 9.0), (0.1, 8.0), (0.2, 6.0), (0.4, 5.0)):
        summary = random_search(seed, ppl_threshold=limit, target_avg_bits=target, search=search).run().summary
        assert summary["ppl_increase"] <= limit
        bits.append(summary["avg_bits"])
    assert bits == sorted(bits, reverse=True), bits


@pytest.mark.parametrize("seed", range(60))
def test_bisecting_agrees_where_layers_differ(seed):
    linear, halved = (random_search(seed, ppl_threshold=0.12, search=how).run() for how in ("linear", "bisect"))
    assert formats(linear) == formats(halved)
    assert linear.summary["stopped"] == halved.summary["stopped"]


def test_a_stricter_limit_is_taken_where_the_larger_one_would_leave_more_bits():
    # 3 % hold one layer in mxfp4 and nothing else, and under a limit just below that three layers are in mxfp8.
    plan = searching({"mxfp4": 3.0, "mxfp8": 0.9}, ppl_threshold=0.0301).run()
    assert formats(plan) == ["mxfp8"] * 3 + ["bf16"] * 4
    assert plan.summary["stopped"] == {"mxfp4": "a lower threshold leaves more bits in all", "mxfp8": "limit"}
    assert {step.get("mxfp4_threshold") for step in plan.summary["search_history"]} == {None, 8.0}


def test_the_summary_says_which_stage_stopped_why():
    assert searching({"mxfp4": 3.0, "mxfp8": 1.0}).run().summary["stopped"] == {"mxfp4": "limit", "mxfp8": "limit"}
    roomy = searching({"mxfp4": 3.0, "mxfp8": 0.01}).run().summary
    assert roomy["stopped"] == {"mxfp4": "limit", "mxfp8": "smallest alpha"} and roomy["mxfp8_threshold"] == 2.0


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_without_any_finite_alpha_nothing_is_compressed(alpha):
    plan = searching({}, dict.fromkeys(ALPHAS, alpha)).run()
    assert formats(plan) == ["bf16"] * 7 and plan.summary["search_history"] == []
    assert set(plan.summary["stopped"].values()) == {"no layer has an alpha"}


def test_an_infinite_alpha_is_left_alone_and_told():
    plan = searching({}, {**ALPHAS, "layers.0": math.inf}).run()
    assert formats(plan) == ["bf16"] + ["mxfp4"] * 6 and plan.summary["layers_without_alpha"] == ["layers.0"]


def test_layers_of_one_alpha_are_compressed_together():
    plan = searching({"mxfp4": 1.0}, dict.fromkeys(ALPHAS, 3.0)).run()
    assert formats(plan) == ["mxfp4"] * 7 and len(plan.summary["search_history"]) == 1
    too_much = searching({"mxfp4": 3.0, "mxfp8": 1.0}, dict.fromkeys(ALPHAS, 3.0)).run()
    assert formats(too_much) == ["mxfp8"] * 7 and too_much.summary["mxfp4_threshold"] is None


def test_a_task_search_names_its_own_metric(caplog):
    caplog.set_level("INFO")
    search = searching({"mxfp4": 3.0, "mxfp8": 1.0})
    search.measure = "demo_stories 1 - acc"
    summary = search.run().summary
    assert summary["measure"] == "demo_stories 1 - acc" and summary["value"] == summary["ppl"]
    assert all(step["measure"] == "demo_stories 1 - acc" for step in summary["search_history"])
    assert all(step["value_increase"] == step["ppl_increase"] for step in summary["search_history"])
    said = [record.getMessage() for record in caplog.records]
    assert any("demo_stories 1 - acc 103.0000" in line for line in said) and not any("ppl" in line for line in said)


@pytest.mark.parametrize("figure", [math.inf, math.nan, -1.0])
def test_a_base_figure_of_which_no_share_is_a_limit_is_refused(figure):
    with pytest.raises(UserError, match="ADAPTIVE-BASE-ZERO"):
        AdaptiveQuantizationSearch(info(), ALPHAS, lambda plan: figure, AdaptiveSettings()).run()


def test_a_missed_target_is_told_with_the_distance():
    summary = searching({"mxfp4": 3.0, "mxfp8": 1.0}, target_avg_bits=4.0).run().summary
    assert not summary["target_reached"]
    assert summary["target_missed_by"] == pytest.approx(summary["avg_bits"] - 4.0)


def test_a_step_that_moves_no_layer_costs_nothing():
    search = searching({"mxfp4": 0.1, "mxfp8": 0.1}, step_size=0.25)
    summary = search.run().summary
    distinct = {tuple(formats(plan)) for plan in search.calls}
    assert len(search.calls) == len(distinct) == summary["cost"]["evaluations"] < len(summary["search_history"])


@pytest.mark.parametrize("step", [0.1, 0.25, 0.8, 1.0, 5.9, 6.0, 6.1, 1e9])
def test_the_last_threshold_is_the_smallest_alpha(step):
    grid = searching({}, step_size=step).grid()
    assert grid[0] == 8.0 and grid[-1] == 2.0 and grid == sorted(set(grid), reverse=True)
    assert all(a - b <= step + 1e-9 for a, b in itertools.pairwise(grid))


def test_a_single_alpha_gives_a_single_threshold():
    assert searching({}, dict.fromkeys(ALPHAS, 3.0)).grid() == [3.0]


def test_layers_without_an_alpha_are_told_and_never_compressed():
    alphas = {**ALPHAS, "layers.0": math.nan}
    plan = searching({"mxfp4": 0.0, "mxfp8": 0.0}, alphas).run()
    assert formats(plan)[0] == "bf16" and plan.summary["layers_without_alpha"] == ["layers.0"]


def test_a_plan_that_gives_nan_never_holds():
    assert formats(searching({"mxfp4": math.nan, "mxfp8": math.nan}).run()) == ["bf16"] * 7


def test_the_other_polarity_compresses_small_alphas_first():
    plan = searching({"mxfp4": 3.0, "mxfp8": 50.0}, polarity="low_alpha_fewer_bits").run()
    assert formats(plan) == ["bf16"] * 4 + ["mxfp4"] * 3 and plan.summary["mxfp4_threshold"] == 4.0


@pytest.mark.parametrize("damage", [(3.0, 1.0), (0.5, 0.1), (50.0, 4.0), (0.0, 0.0)])
@pytest.mark.parametrize("target", [1.0, 9.0, 12.0])
def test_bisecting_finds_the_thresholds_of_the_linear_search(damage, target):
    costs = dict(zip(("mxfp4", "mxfp8"), damage, strict=True))
    linear = searching(costs, target_avg_bits=target, step_size=0.25)
    halved = searching(costs, target_avg_bits=target, step_size=0.25, search="bisect")
    assert formats(linear.run()) == formats(halved.run())
    # A stricter limit costs one evaluation for each stage-1 threshold above the one that held.
    stricter = len({step["mxfp4_threshold"] for step in halved.history if step.get("mxfp4_threshold")})
    assert halved.evaluations <= 2 + stricter + 2 * (1 + math.ceil(math.log2(len(linear.grid()))))


def test_bisecting_says_when_perplexity_was_not_monotone():
    ups = {7: 20.0, 3: 30.0}
    search = searching({}, search="bisect")
    search.evaluate = lambda plan: 100 + ups.get(formats(plan).count("mxfp4"), 0.0) + 30 * formats(plan).count("mxfp8")
    assert search.run().summary["monotone"] is False


def test_a_subclass_may_search_another_way():
    class TryOne(AdaptiveQuantizationSearch):
        def search_stage(self, stage, fixed):
            return 7.0 if stage == 0 else None

    plan = TryOne(info(), ALPHAS, lambda plan: 100.0, AdaptiveSettings(target_avg_bits=1.0)).run()
    assert formats(plan) == ["mxfp4"] * 2 + ["bf16"] * 5


def test_a_model_without_any_error_gives_no_limit_to_hold():
    with pytest.raises(UserError, match="ADAPTIVE-BASE-ZERO"):
        AdaptiveQuantizationSearch(info(), ALPHAS, lambda plan: 0.0, AdaptiveSettings()).run()
