"""Random mixed precision: counts, preferences, seeds."""

import pytest

from bitplan.core.errors import UserError
from bitplan.models.layers import Layer, ModelInfo
from bitplan.search.random.algorithm import RandomSettings, choose_formats, random_plan


def layers(experts: int, attention: int, other: int) -> tuple[Layer, ...]:
    kinds = ["expert_up"] * experts + ["attn_q"] * attention + ["mlp_up"] * other
    return tuple(Layer(f"l{i}", kind, (32, 32), 0, "", False) for i, kind in enumerate(kinds))


def count(chosen: dict[str, str], form: str) -> int:
    return list(chosen.values()).count(form)


@pytest.mark.parametrize(("r4", "r16"), [(0.3, 0.2), (0, 0), (1, 0), (0, 1), (0.5, 0.5), (0.34, 0.21)])
@pytest.mark.parametrize("sizes", [(4, 4, 2), (0, 7, 12), (10, 0, 0), (0, 0, 3)])
def test_the_counts_are_the_ratios_of_all_layers_rounded_down(sizes, r4, r16):
    some = layers(*sizes)
    chosen = choose_formats(some, RandomSettings(r4, r16))
    assert (count(chosen, "mxfp4"), count(chosen, "bf16")) == (int(len(some) * r4), int(len(some) * r16))
    assert len(chosen) == len(some)


def test_experts_get_mxfp4_and_attention_bf16_before_others_do():
    some = layers(6, 6, 8)
    chosen = choose_formats(some, RandomSettings(0.3, 0.3))
    assert {layer.kind for layer in some if chosen[layer.name] == "mxfp4"} == {"expert"}
    assert {layer.kind for layer in some if chosen[layer.name] == "bf16"} == {"attention"}


def test_a_shortfall_is_drawn_from_the_layers_that_remain():
    some = layers(1, 1, 8)
    chosen = choose_formats(some, RandomSettings(0.5, 0.3))
    assert chosen["l0"] == "mxfp4" and chosen["l1"] in ("bf16", "mxfp4")
    assert (count(chosen, "mxfp4"), count(chosen, "bf16")) == (5, 3)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another():
    some = layers(0, 14, 21)
    draws = [choose_formats(some, RandomSettings(seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_the_draw_of_seed_42_is_what_it_was():
    # A change here changes the plan of everyone who noted a seed.
    chosen = choose_formats(layers(0, 4, 6), RandomSettings(0.3, 0.2, seed=42))
    assert [chosen[f"l{i}"] for i in range(10)] == DRAW_42


DRAW_42 = ["bf16", "mxfp8", "mxfp4", "bf16", "mxfp8", "mxfp8", "mxfp4", "mxfp8", "mxfp4", "mxfp8"]


def test_ratios_over_1_together_are_refused():
    with pytest.raises(UserError, match="RANDOM-RATIOS"):
        random_plan(ModelInfo("", "", "", "", 1, layers(0, 2, 2)), RandomSettings(0.6, 0.5))


def test_the_summary_counts_what_the_plan_holds():
    some = layers(0, 4, 6)
    info = ModelInfo("", "", "", "", 10 * 1024, (*some, Layer("lm_head", "lm_head", (32, 32), -1, "", True)))
    plan = random_plan(info, RandomSettings(0.33, 0.2))
    summary = plan.summary
    assert (summary["total_layers"], summary["mxfp4_layers"], summary["bf16_layers"], summary["mxfp8_layers"]) == (
        10,
        3,
        2,
        5,
    )
    assert (summary["mxfp4_ratio"], summary["requested_mxfp4_ratio"], summary["mxfp8_ratio"]) == (0.3, 0.33, 0.5)
    assert not plan.of("lm_head").quantized
