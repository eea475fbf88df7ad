"""The adaptive search: what each stage keeps, when it stops, what it costs."""

import math

import pytest

from bitplan.core.errors import UserError
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.plan import average_bits
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
    assert [step["stage"] for step in summary["search_history"]] == ["mxfp4"] * 4 + ["mxfp8"] * 2
    assert summary["search_history"][3]["ppl_increase"] == pytest.approx(0.12)
    assert summary["search_history"][0]["layers"] == {"mxfp4": 1, "mxfp8": 0, "bf16": 6}


def test_the_baseline_is_the_unquantized_model():
    search = searching({"mxfp4": 3.0, "mxfp8": 1.0})
    summary = search.run().summary
    assert summary["base_ppl"] == 100 and not any(made.quantized for made in search.calls[0].layers.values())


def test_where_stage_1_keeps_nothing_stage_2_starts_at_the_largest_alpha():
    plan = searching({"mxfp4": 50.0, "mxfp8": 4.0}).run()
    assert formats(plan) == ["mxfp8"] * 2 + ["bf16"] * 5 and plan.summary["mxfp4_threshold"] is None


def test_the_search_stops_at_the_target():
    plan = searching({"mxfp4": 0.0, "mxfp8": 0.0}, target_avg_bits=11.0).run()
    bits = average_bits(plan, info()).avg_bits
    assert bits <= 11.0 and formats(plan).count("mxfp4") == 3
    assert plan.summary["target_reached"] and plan.summary["mxfp8_threshold"] is None


def test_a_missed_target_is_told_with_the_distance():
    summary = searching({"mxfp4": 3.0, "mxfp8": 1.0}, target_avg_bits=4.0).run().summary
    assert not summary["target_reached"]
    assert summary["target_missed_by"] == pytest.approx(summary["avg_bits"] - 4.0)


def test_a_step_that_moves_no_layer_costs_nothing():
    search = searching({"mxfp4": 0.1, "mxfp8": 0.1}, step_size=0.25)
    summary = search.run().summary
    distinct = {tuple(formats(plan)) for plan in search.calls}
    assert len(search.calls) == len(distinct) == summary["cost"]["evaluations"] < len(summary["search_history"])


def test_no_threshold_lies_below_the_smallest_alpha():
    assert searching({}, step_size=0.8).grid() == pytest.approx([8 - 0.8 * k for k in range(8)])


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
    assert halved.evaluations <= 1 + 2 * (1 + math.ceil(math.log2(len(linear.grid()))))


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
    with pytest.raises(UserError, match="makes no error"):
        AdaptiveQuantizationSearch(info(), ALPHAS, lambda plan: 0.0, AdaptiveSettings()).run()
