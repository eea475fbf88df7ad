"""What a configuration leaves out: the demo, the recipes and the formats that follow from plans."""

import pytest

from bitplan.config.completion import DEFAULT_PLANS, completed, demo_config
from bitplan.config.paths import check_places
from bitplan.config.runtime_palettes import check_palettes
from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from tests.conftest import ROOT

MINE = {"mine": {"path": "somebody/model", "calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}}
METHODS = {
    "adaptive": {},
    "random": {},
    "genetic": {},
    "sparsegpt": {},
    "optimal": {"target_avg_bits": 5.0},
}


def settings(**config):
    return parse_settings(completed(config, ROOT))


def test_the_demo_runs_while_nobody_names_models_or_plans():
    assert set(settings().models) == {"demo"} and set(settings().plans) == set(demo_config(ROOT)["plans"])
    assert set(settings(models=None, plans=None, studies=None).plans) == set(demo_config(ROOT)["plans"])


def test_the_models_and_plans_that_a_file_names_are_all_that_runs():
    own = settings(models=MINE, plans={"one": {"method": "random"}})
    assert (list(own.models), list(own.plans), own.studies) == (["mine"], ["one"], {})


def test_plans_alone_are_tried_on_the_demo_and_models_alone_get_an_optimal_plan():
    assert list(settings(plans={"one": {"method": "random"}}).models) == ["demo"]
    assert list(settings(models=MINE).plans) == list(DEFAULT_PLANS)


def test_models_of_other_runtimes_get_a_plan_that_these_hold():
    texts = {key: MINE["mine"][key] for key in ("path", "calibration", "evaluation")}
    own = settings(models={"mine": {**texts, "runtimes": ["compressed_tensors"]}})
    (plan,) = own.plans.values()
    check_palettes(own)
    assert "int4_bf16s" in plan.palette and plan.sizes == "stored"


def test_a_setting_of_the_demos_model_changes_that_model():
    changed = settings(models={"demo": {"evaluation": "demo/calibration.txt"}})
    assert changed.models["demo"].evaluation == changed.models["demo"].calibration
    assert len(changed.plans) > 1


@pytest.mark.parametrize(("method", "more"), METHODS.items())
def test_each_method_runs_from_a_plan_and_nothing_else(method, more):
    own = settings(plans={"one": {"method": method, **more}})
    palette = getattr(own.plans["one"], "palette", [])
    assert set(palette) <= set(own.sensitivity.palette)


def test_what_an_optimal_plan_needs_follows_from_it():
    own = settings(plans={"best": {"method": "optimal", "same_size_as": "q3_k_m", "palette": ["q3_k", "q4_k"]}})
    assert own.sensitivity.palette == ["q3_k", "q4_k"] and own.has_kld
    assert own.sensitivity.embeddings == ["q4_k", "q5_k", "q6_k", "q8_0"]
    assert own.baselines == ["f16", "q3_k_m", "q3_k_m_imatrix"]


@pytest.mark.parametrize("name", ["Q4_K_M", "q4-k-m", " q4_k_m"])
def test_a_recipe_is_known_in_any_spelling(name):
    own = settings(models=MINE, plans={"one": {"method": "optimal", "same_size_as": name}}, baselines=["F16", name])
    assert (own.plans["one"].same_size_as, own.baselines) == ("q4_k_m", ["f16", "q4_k_m"])


def test_a_recipe_that_is_none_is_said_once_where_it_stands():
    with pytest.raises(UserError) as raised:
        settings(models=MINE, plans={"one": {"method": "optimal", "same_size_as": "q4km"}})
    (problem,) = raised.value.problems
    assert (problem.code, problem.where) == ("SETTINGS-NOT-A-CHOICE", "plans.one.same_size_as")
    assert "Did you mean 'q4_k_m'?" in problem.what


def test_what_a_file_says_itself_stays():
    plan = {"method": "optimal", "same_size_as": "q3_k_m", "palette": ["q3_k"]}
    own = settings(plans={"b": plan}, baselines=["f16"], sensitivity={"palette": ["q8_0"], "embeddings": []})
    assert own.baselines == ["f16", "q3_k_m"], "the size of a recipe is read off its file"
    assert own.sensitivity.palette == ["q8_0", "q3_k"] and own.sensitivity.embeddings == []


@pytest.mark.parametrize(
    "config",
    [
        {"plans": {"x": "word"}},
        {"plans": 3},
        {"plans": {"x": {"method": "genetics"}}},
        {"sensitivity": 4},
        {"baselines": "f16"},
    ],
)
def test_what_is_wrong_with_a_configuration_is_left_for_the_settings_to_say(config):
    with pytest.raises(UserError):
        settings(**config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("path", "{tmp}/nowhere/at/all", "does not exist"),
        ("path", "{tmp}/model.gguf", "is a file, not the folder of a checkpoint"),
        ("path", "{tmp}/models", "e.g. {tmp}/models/small"),
        ("path", "{tmp}", "is a folder without a config.json"),
        ("calibration", "{tmp}/none.txt", "does not exist"),
        ("evaluation", "{tmp}", "is a folder"),
    ],
)
def test_a_place_that_leads_to_no_model_or_text_is_named_at_the_start(tmp_path, key, value, message):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "models" / "small").mkdir(parents=True)
    (tmp_path / "models" / "small" / "config.json").write_text("{}")
    model = {**MINE["mine"], key: value.format(tmp=tmp_path)}
    with pytest.raises(UserError) as error:
        check_places(settings(models={"mine": model}))
    (problem,) = error.value.problems
    assert problem.where.startswith(f"models.mine.{key}: ") and message.format(tmp=tmp_path) in str(problem)


def test_what_may_be_an_id_on_the_hub_is_left_to_the_download():
    check_places(settings(models=MINE))
