"""Plans: patterns, protected layers, bits, and errors."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.formats.table import IN_PLANS
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.bits import bits_report, pattern_counts
from bitplan.plans.plan import (
    LayerPlan,
    Plan,
    average_bits,
    check_columns,
    expand,
    read_plan,
    uniform_plan,
    write_config,
    write_plan,
)
from bitplan.search.allocation.constraints import rule_of
from bitplan.search.sparsegpt.settings import ModelSettings
from bitplan.sensitivity.table import SensitivityTable

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


def test_a_plain_word_applies_to_the_layers_whose_name_ends_in_it(info):
    config = {"default": {"wq": "mxfp8"}, "overrides": [{"pattern": "q_proj", "wq": "mxfp4"}]}
    plan = expand(config, info.layers)
    assert [name for name in NAMES if plan.of(name).wq == "mxfp4"] == NAMES[::2]
    # A pattern without a dot or a star may have other wildcards.
    assert expand({"overrides": [{"pattern": "[qk]_pro?", "wq": "mxfp4"}]}, info.layers).counts(info)["mxfp4"] == 3


@pytest.mark.parametrize("pattern", ["proj", "self_attn", "mlp.down_proj", "expert1", "model"])
def test_a_part_of_a_name_that_is_not_its_last_one_matches_nothing(info, pattern):
    with pytest.raises(UserError, match=f"pattern '{pattern}' matches no layer"):
        expand({"overrides": [{"pattern": pattern, "wq": "mxfp4"}]}, info.layers)


def test_the_hint_for_a_plain_word_names_last_parts(info):
    with pytest.raises(UserError, match="Did you mean 'q_proj'"):
        expand({"overrides": [{"pattern": "q_prj", "wq": "mxfp4"}]}, info.layers)


def test_a_whole_name_is_that_layer_alone(info):
    named = (*info.layers, layer("model.layers.0.lm_head"))
    plan = expand({"overrides": [{"pattern": "lm_head", "wq": "int8", "skip": False}]}, named)
    assert not plan.of("model.layers.0.lm_head").quantized


def test_searches_counts_and_plans_match_by_the_same_rule(info, tmp_path):
    names = [each.name for each in info.layers]
    config = tmp_path / "config.json"
    for pattern in ("q_proj", "*q_proj", "*", NAMES[1], "[qm]*", "?_proj"):
        config.write_text(json.dumps({"overrides": [{"pattern": pattern, "wq": "mxfp4"}]}))
        matches = [name for name in NAMES if read_plan(config, info).of(name).wq == "mxfp4"]
        rounded = ModelSettings(targets=(4.0,), layer_bits=((pattern, 8.0),))
        assert matches == [each.name for each in info.quantizable if rounded.target_of(each, 11) == 8.0], pattern
        table = SensitivityTable(
            tuple(names), ("q8_0",), np.ones(len(names)), np.ones((len(names), 1)), np.ones((len(names), 1)), ()
        )
        assert matches == [names[place] for place in rule_of(pattern, "--floor").layers(table) if names[place] in NAMES]
        counts = pattern_counts(config, info)
        assert sum(each["layers"] - each["protected"] for each in counts) == (0 if pattern in names else len(matches))


def test_patterns_tell_upper_from_lower_case(info):
    with pytest.raises(UserError, match="matches no layer"):
        expand({"overrides": [{"pattern": "MODEL.layers.*", "wq": "mxfp4"}]}, info.layers)


def test_protected_layers_stay_whole_whatever_matches(info):
    plan = expand(
        {"default": {"wq": "mxfp4", "aq": "mxfp4"}, "overrides": [{"pattern": "*", "wq": "int4"}]}, info.layers
    )
    assert not plan.of("lm_head").quantized and not plan.of("model.embed_tokens").quantized


def matrices(tied: bool = False) -> ModelInfo:
    """A model with an embedding, a router, a layer and an output matrix, tied or not."""
    table = Layer("model.embed_tokens", "embedding", (100, 64), -1, "", True)
    router = Layer("model.layers.0.mlp.gate", "router", (4, 64), 0, "", True)
    output = Layer("lm_head", "lm_head", (100, 64), -1, "", True, tied=tied)
    layers = (table, layer(NAMES[0]), router, output)
    return ModelInfo("here", "f1", "", "", sum(each.params for each in layers if not each.tied) + 10, layers)


def outside(pattern: str, wq: str = "q8_0", **more) -> dict:
    return {"pattern": pattern, "wq": wq, "embeddings": True, **more}


def test_an_entry_marked_outside_gives_the_embedding_or_the_output_matrix_a_format():
    info = matrices()
    plan = expand(
        {"default": {"wq": "mxfp4", "aq": "mxfp8", "group_size": 16}, "overrides": [outside("lm_head")]}, info.layers
    )
    assert plan.of("lm_head") == LayerPlan("q8_0", embeddings=True), "nothing is taken from the default"
    assert not plan.of("model.embed_tokens").quantized and not plan.of("model.layers.0.mlp.gate").quantized
    assert [each.name for each in plan.embeddings(info)] == ["lm_head"]


def test_the_last_match_decides_about_what_is_outside_too():
    info = matrices()
    later = {"overrides": [outside("lm_head"), {"pattern": "lm_*", "wq": "q4_0"}]}
    assert not expand(later, info.layers).of("lm_head").quantized
    twice = {"overrides": [outside("lm_head"), outside("lm_head", "q4_0")]}
    assert expand(twice, info.layers).of("lm_head").wq == "q4_0"


def test_average_bits_count_what_is_outside_and_those_of_the_layers_do_not():
    info, tied = matrices(), matrices(tied=True)
    config = {"overrides": [outside("model.embed_tokens"), {"pattern": NAMES[0], "wq": "q4_0"}]}
    stored = 6400 * 8.5 + 256 * 4.5 + 16 * (256 + 10)
    bits = average_bits(expand(config, info.layers), info)
    assert bits.avg_bits_layers == 4.5 and bits.avg_bits == pytest.approx((stored + 16 * 6400) / info.parameters)
    assert average_bits(expand(config, tied.layers), tied).avg_bits == pytest.approx(stored / tied.parameters)


def test_the_embedding_of_a_tied_model_decides_the_output_matrix_and_a_contradiction_is_refused():
    info = matrices(tied=True)
    for entries in ([outside("model.embed_tokens")], [outside("model.embed_tokens"), outside("lm_head")]):
        plan = expand({"overrides": entries}, info.layers)
        assert plan.of("lm_head").wq == plan.of("model.embed_tokens").wq == "q8_0"
    overrides = [outside("model.embed_tokens"), {"pattern": "lm_head", "skip": True}]
    assert expand({"overrides": overrides}, info.layers).of("lm_head").wq == "q8_0", "it is the same matrix"
    for entries in ([outside("lm_head")], [outside("model.embed_tokens", "q4_0"), outside("lm_head")]):
        with pytest.raises(UserError, match="lm_head: is to be q8_0, and model.embed_tokens, the very same matrix"):
            expand({"overrides": entries}, info.layers)


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (outside("*"), "'[*]' is not the whole name of the token embedding"),
        (outside("lm_hea?"), "is not the whole name"),
        (outside("model.layers.0.mlp.gate"), "is not the whole name"),
        (outside(NAMES[0]), "Name one: model.embed_tokens, lm_head"),
        (outside("lm_head", "q88_0"), "unknown format 'q88_0'"),
        (outside("lm_head", "int4_tensor"), "does not make each row of a matrix by itself"),
        (outside("lm_head", aq="mxfp8"), "has weights only"),
        ({"pattern": "lm_head", "embeddings": True}, "has no wq beside it"),
        (outside("lm_head") | {"embeddings": "yes"}, "'yes' is neither true nor false"),
    ],
)
def test_a_wrong_entry_for_what_is_outside_is_refused(entry, what):
    with pytest.raises(UserError, match=what):
        expand({"overrides": [entry]}, matrices().layers)


def test_a_default_cannot_lift_the_protection():
    with pytest.raises(UserError, match="default.embeddings: 'the default' is not the whole name"):
        expand({"default": {"wq": "q8_0", "embeddings": True}}, matrices().layers)


def test_an_embedding_whose_rows_do_not_fit_has_the_substitute_and_so_has_a_tied_output(caplog):
    info = matrices(tied=True)
    plan = expand({"overrides": [outside("model.embed_tokens", "q4_k")]}, info.layers, "plan.json")
    for name in ("model.embed_tokens", "lm_head"):
        assert plan.of(name) == LayerPlan("q5_0", embeddings=True)
        assert plan.of(name).notes["substitute"] == "q4_k -> q5_0: 64 columns"
    assert caplog.messages == [
        "plan.json: 1 of 2 layers have rows that do not fit a format asked for, and get llama.cpp's substitute."
        " 64 columns: q4_k -> q5_0"
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_files_keep_the_formats_of_what_is_outside(tied, tmp_path):
    info = matrices(tied)
    entries = [outside("model.embed_tokens"), {"pattern": NAMES[0], "wq": "int4", "group_size": 16}]
    plan = expand({"overrides": entries}, info.layers)
    write_config(tmp_path / "config.json", plan, LayerPlan(group_size=32), info, "summary")
    write_plan(tmp_path / "plan.json", plan, LayerPlan("mxfp8", "mxfp8", 32), info, "summary")
    for name in ("config.json", "plan.json"):
        assert read_plan(tmp_path / name, info).layers == plan.layers
    bits, rows = bits_report(plan, info, None, None)
    assert {row["layer"]: row["wq"] for row in rows}["model.embed_tokens"] == "q8_0"
    assert bits["distribution"]["q8_0"]["params"] == 6400


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
    assert average_bits(uniform_plan(wide, "int4"), wide).avg_bits_layers == 4 + 16 / 128
    assert average_bits(uniform_plan(wide, "int4", group_size=32), wide).avg_bits_layers == 4 + 16 / 32


def test_a_format_that_does_not_fit_is_told_for_every_layer_before_any_work(info):
    by_hand = Plan({name: LayerPlan("q4_k") for name in NAMES})
    with pytest.raises(UserError) as caught:
        check_columns(by_hand, info)
    assert len(caught.value.problems) == 6
    assert "model.layers.0.self_attn.q_proj: its 64 columns are no multiple of q4_k's block of 256" in str(
        caught.value.problems[0]
    )


@pytest.mark.parametrize(("form", "columns"), [("q4_k", 64), ("q4_k", 172), ("q8_0", 172), ("q4_0", 40), ("mine", 96)])
def test_what_a_refusal_advises_fits_the_very_layer(form, columns):
    one = layer(NAMES[0], shape=(4, columns))
    info = ModelInfo("here", "f1", "", "", one.params, (one,))
    formats = {**IN_PLANS, "mine": replace(IN_PLANS["q4_k"], name="mine", block=64)}
    with pytest.raises(UserError) as caught:
        check_columns(Plan({one.name: LayerPlan(form)}), info, formats)
    advised = caught.value.problems[0].hint.removeprefix("Give it ").split(",")[0]
    assert advised != form
    check_columns(Plan({one.name: LayerPlan(advised)}), info, formats)


def test_a_plan_names_what_a_layer_gets_whose_rows_do_not_fit_and_what_was_asked(tmp_path, caplog):
    layers = tuple(layer(name, shape=(4, columns)) for name, columns in zip(NAMES, (64, 256, 172, 896), strict=False))
    info = ModelInfo("here", "f1", "", "", sum(each.params for each in layers), layers)
    plan = expand({"default": {"wq": "q6_k", "group_size": 32}}, layers)
    assert [plan.of(name).wq for name in NAMES[:4]] == ["q8_0", "q6_k", "bf16", "q8_0"]
    assert average_bits(plan, info).avg_bits == sum(
        each.params * bits for each, bits in zip(layers, (8.5, 6.5625, 16, 8.5), strict=True)
    ) / sum(each.params for each in layers)
    assert plan.layers == {each.name: uniform_plan(info, "q6_k", group_size=32).of(each.name) for each in layers}
    assert len(caplog.messages) == 1 and "3 of 4 layers" in caplog.text
    caplog.clear()
    for write, name in ((write_plan, "p.json"), (write_config, "c.json")):
        write(tmp_path / name, plan, LayerPlan(), info, "summary")
        entries = {entry["pattern"]: entry for entry in json.loads((tmp_path / name).read_text())["overrides"]}
        assert entries[NAMES[0]]["wq"] == "q8_0" and entries[NAMES[0]]["substitute"] == "q6_k -> q8_0: 64 columns"
        again = read_plan(tmp_path / name, info)
        assert again.layers.keys() == plan.layers.keys()
        assert [again.of(name).wq for name in NAMES[:4]] == ["q8_0", "q6_k", "bf16", "q8_0"]
        assert again.of(NAMES[3]).notes == {"substitute": "q6_k -> q8_0: 896 columns"}
    assert not caplog.messages, "a plan that fits is read without a warning"


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
    write_plan(tmp_path / "plan.json", uniform_plan(info, "mxfp4"), LayerPlan(), info, "summary")
    other = ModelInfo("there", "f2", info.architecture, info.model_type, info.parameters, info.layers)
    with pytest.raises(UserError, match="another model"):
        read_plan(tmp_path / "plan.json", other)
