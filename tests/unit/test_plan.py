"""Plans: patterns, protected layers, bits, and what is refused."""

import json

import pytest

from bitplan.errors import UserError
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plan import LayerPlan, average_bits, check_columns, expand, read_plan, uniform, write_config, write_plan

NAMES = [f"model.layers.{i}.{part}" for i in (0, 1, 10) for part in ("self_attn.q_proj", "mlp.down_proj")]


def layer(name: str, protected: bool = False, shape: tuple[int, int] = (4, 64)) -> Layer:
    return Layer(name, "other", shape, 0, "", protected)


@pytest.fixture
def info() -> ModelInfo:
    layers = (layer("model.embed_tokens", True), *map(layer, NAMES), layer("lm_head", True))
    return ModelInfo("here", "f1", "LlamaForCausalLM", "llama", sum(each.params for each in layers), layers)


def test_the_last_matching_pattern_wins(info):
    config = {
        "overrides": [
            {"pattern": "*", "wq": "mxfp8"},
            {"pattern": "*q_proj", "wq": "mxfp4"},
            {"pattern": NAMES[0], "wq": "int8"},
        ]
    }
    plan = expand(config, info.layers)
    assert [plan.of(name).wq for name in NAMES] == ["int8", "mxfp8", "mxfp4", "mxfp8", "mxfp4", "mxfp8"]


def test_a_pattern_matches_the_whole_name(info):
    plan = expand({"overrides": [{"pattern": "model.layers.1.*", "wq": "mxfp4"}]}, info.layers)
    assert [name for name in NAMES if plan.of(name).wq == "mxfp4"] == NAMES[2:4]


def test_patterns_tell_upper_from_lower_case(info):
    with pytest.raises(UserError, match="matches no layer"):
        expand({"overrides": [{"pattern": "MODEL.layers.*", "wq": "mxfp4"}]}, info.layers)


def test_protected_layers_stay_whole_whatever_matches(info):
    plan = expand(
        {"default": {"wq": "mxfp4", "aq": "mxfp4"}, "overrides": [{"pattern": "*", "wq": "int4"}]}, info.layers
    )
    assert not plan.of("lm_head").quantized and not plan.of("model.embed_tokens").quantized


def test_an_override_takes_from_the_default_what_it_does_not_say(info):
    config = {
        "default": {"wq": "mxfp8", "aq": "mxfp8", "group_size": 16},
        "overrides": [{"pattern": NAMES[0], "wq": "mxfp4"}],
    }
    assert expand(config, info.layers).of(NAMES[0]) == LayerPlan("mxfp4", "mxfp8", 16)


def test_skip_leaves_a_layer_at_16_bits(info):
    config = {"default": {"wq": "mxfp8", "aq": "mxfp8"}, "overrides": [{"pattern": NAMES[0], "skip": True}]}
    assert not expand(config, info.layers).of(NAMES[0]).quantized


def test_every_problem_is_told_at_once_with_its_place_and_the_nearest_name(info):
    config = {
        "default": {"wq": "mxfp44"},
        "overrides": [
            {"pattern": "model.layers.7.mlp.down_proj"},
            {"pattern": "*", "wz": 1},
            {"pattern": "*", "aq": "q4_k"},
        ],
    }
    with pytest.raises(UserError) as caught:
        expand(config, info.layers, "c.json")
    text = [str(problem) for problem in caught.value.problems]
    assert "c.json: default.wq: unknown format 'mxfp44'. Did you mean 'mxfp4'" in text[0]
    assert "matches no layer" in text[1] and "model.layers.1.mlp.down_proj" in text[1]
    assert "overrides[1].wz: unknown key" in text[2] and "weights only" in text[3]


def test_average_bits_count_scales_and_every_parameter_once(info):
    plan = expand({"overrides": [{"pattern": "*q_proj", "wq": "mxfp4"}]}, info.layers)
    bits = average_bits(plan, info)
    assert bits.avg_bits_layers == (4.25 + 16) / 2
    assert bits.avg_bits == (3 * 4.25 + 5 * 16) / 8


def test_integers_take_groups_of_128_unless_a_plan_says_otherwise(info):
    wide = ModelInfo("", "", "", "", 4 * 256, (layer("l", shape=(4, 256)),))
    assert average_bits(uniform(wide, "int4"), wide).avg_bits_layers == 4 + 16 / 128
    assert average_bits(uniform(wide, "int4", group_size=32), wide).avg_bits_layers == 4 + 16 / 32


def test_a_format_that_does_not_fit_is_told_for_every_layer_before_any_work(info):
    with pytest.raises(UserError) as caught:
        check_columns(uniform(info, "q4_k"), info)
    assert len(caught.value.problems) == 6
    assert "model.layers.0.self_attn.q_proj: its 64 columns are no multiple of q4_k's block of 256" in str(
        caught.value.problems[0]
    )


def test_config_and_plan_files_expand_to_the_plan_they_were_written_from(info, tmp_path):
    plan = expand(
        {"default": {"wq": "mxfp8", "aq": "mxfp8"}, "overrides": [{"pattern": "*down_proj", "skip": True}]}, info.layers
    )
    default = LayerPlan("mxfp8", "mxfp8")
    write_config(tmp_path / "config.json", plan, default, info, "summary")
    write_plan(tmp_path / "plan.json", plan, default, info, "summary")
    for name in ("config.json", "plan.json"):
        assert read_plan(tmp_path / name, info).layers == plan.layers
    records = json.loads((tmp_path / "plan.json").read_text())["overrides"]
    assert [record["pattern"] for record in records] == [each.name for each in info.layers]


def test_a_plan_for_another_model_is_refused(info, tmp_path):
    write_plan(tmp_path / "plan.json", uniform(info, "mxfp4"), LayerPlan(), info, "summary")
    other = ModelInfo("there", "f2", info.architecture, info.model_type, info.parameters, info.layers)
    with pytest.raises(UserError, match="another model"):
        read_plan(tmp_path / "plan.json", other)
