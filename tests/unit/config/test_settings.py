"""Settings: what is refused and how it is said, coercion, flags, generated files in step."""

import datetime
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bitplan.config.flags import cli_flags
from bitplan.config.paths import placed_settings
from bitplan.config.settings import parse_settings
from bitplan.config.unique_keys import check_duplicate_keys
from bitplan.config.yaml_file import config_text, schema_text
from bitplan.core.errors import UserError
from tests.conftest import SCRIPTS

MODEL = {"path": "m", "calibration": "c.txt", "evaluation": "e.txt"}


def config(**changes):
    return {"models": {"demo": MODEL}, "plans": {"one": {"method": "adaptive"}}, **changes}


def problems(**changes) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_settings(config(**changes))
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": {}}, 'plan: unknown key. Did you mean "plans"?'),
        (
            {"plans": {"a": {"method": "adaptive", "taget_avg_bits": 4}}},
            'plans.a.taget_avg_bits: unknown key. Did you mean "target_avg_bits"?',
        ),
        (
            {"plans": {"a": {"method": "adaptive", "ppl_threshold": -1}}},
            "plans.a.ppl_threshold: input should be greater than 0 (it is -1)",
        ),
        (
            {"plans": {"a": {"method": "adaptive", "check": {"on_mis": "fail"}}}},
            'plans.a.check.on_mis: unknown key. Did you mean "on_miss"?',
        ),
        ({"plans": {"a": {"ppl_threshold": 1}}}, "plans.a: has no method. Add one of: adaptive, random"),
        (
            {"plans": {"a": {"method": "random", "mxfp4_ratio": 0.7, "bf16_ratio": 0.6}}},
            "plans.a.bf16_ratio: mxfp4_ratio and bf16_ratio add up",
        ),
        ({"plans": {"a b": {"method": "random"}}}, "plans.a b"),
        ({"plans": {"../x": {"method": "random"}}}, "plans.../x"),
        ({"plans": {}}, "plans: "),
        ({"models": {"demo": {"path": "m"}}}, "models.demo.calibration: field required"),
        ({"evaluation": {"length": 1}}, "evaluation.length: input should be greater than or equal to 2"),
        ({"evaluation": {"sequnces": 1}}, 'evaluation.sequnces: unknown key. Did you mean "sequences"?'),
        ({"baselines": ["f16", "q4km"]}, "baselines.1: 'q4km' is no recipe of llama.cpp. Did you mean 'q4_k_m'?"),
        ({"baselines": ["f16", "f16"]}, "f16 is used twice"),
        ({"plans": {"f16": {"method": "random"}}}, "f16 is used twice"),
        ({"compute": {"device": "gpu"}}, "compute.device"),
        (
            {"imatrix": False, "sensitivity": {"palette": ["q4_k", "iq2_s", "iq3_xxs/mxfp8"]}},
            "iq2_s, iq3_xxs need the importance matrix: set imatrix to true",
        ),
        (
            {"imatrix": False, "plans": {"a": {"method": "adaptive", "formats": ["iq1_m", "q4_k"]}}},
            "iq1_m needs the importance matrix",
        ),
        (
            {
                "plans": {"a": {"method": "optimal", "target_avg_bits": 6, "palette": ["q4_k"]}},
                "sensitivity": {"palette": ["q4_k"]},
                "validation": {"sequences": 3},
            },
            "plan a decides its steps on at least 4 windows: set validation.sequences to 4 or more",
        ),
        ({"speed": {"repeats": "many"}}, "speed.repeats: input should be a valid integer"),
    ],
)
def test_a_wrong_setting_is_named_with_its_key(changes, message):
    assert any(message in problem for problem in problems(**changes)), problems(**changes)


def test_all_problems_are_told_at_once():
    assert len(problems(plan={}, compute={"dtype": "fp8"}, speed={"repeats": 0})) == 3


def test_numbers_may_come_as_strings():
    parsed = parse_settings(
        config(plans={"a": {"method": "adaptive", "step_size": "1e-1"}}, evaluation={"sequences": "8"})
    )
    assert parsed.plans["a"].step_size == 0.1 and parsed.evaluation.sequences == 8


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("speed:\n  repeats: 1\n  repeats: 2\n")
    with pytest.raises(UserError, match=r"c.yaml:3: key 'repeats' is given twice"):
        check_duplicate_keys(path)


def test_flags_are_sorted_quoted_and_repeat_lists():
    values = {"b": 1.5, "a": ["x y", "z"], "none": None, "yes": True, "no": False}
    assert shlex.split(cli_flags(values)) == ["--a", "x y", "--a", "z", "--b", "1.5", "--no-no", "--yes"]


def test_the_order_of_keys_does_not_change_the_flags():
    assert cli_flags({"a": 1, "b": 2}) == cli_flags({"b": 2, "a": 1})


def test_every_recipe_is_known_to_the_runtime():
    from bitplan.runtimes.gguf.recipe_names import BASELINES, IMATRIX_SUFFIX
    from bitplan.runtimes.gguf.recipes import RECIPES

    assert {name.removesuffix(IMATRIX_SUFFIX) for name in BASELINES} <= set(RECIPES)


def test_settings_know_the_names_of_formats_without_loading_what_these_are_computed_with():
    program = (
        "import sys; from bitplan.config.settings import parse_settings; print({'torch', 'gguf'} & set(sys.modules))"
    )
    made = subprocess.run([sys.executable, "-c", program], cwd=SCRIPTS, capture_output=True, text=True, check=True)
    assert made.stdout == "set()\n"


def test_config_and_schema_are_what_the_models_say():
    from tests.conftest import ROOT

    assert (ROOT / "config.yaml").read_text() == config_text(), "run scripts/write_config.py --fix"
    assert (ROOT / "config.schema.json").read_text() == schema_text(), "run scripts/write_config.py --fix"


@pytest.mark.parametrize(("given", "wanted"), [(None, None), (1, 1), ("2", 2), ("all", "all")])
def test_anchors_come_as_numbers_or_words_and_are_flags_of_the_command(given, wanted):
    made = parse_settings(config(sensitivity={"anchors": given, "palette": ["q8_0"]})).sensitivity
    assert made.anchors == wanted
    assert cli_flags({"anchors": made.anchors}) == ("" if wanted is None else f"--anchors {wanted}")


def test_the_choices_of_a_setting_stand_in_the_comment():
    assert "absent: not at all (1 | 2 | all)" in config_text()


@pytest.mark.parametrize(
    ("name", "shown"), [(False, "no"), (4, "4"), (datetime.date(2026, 11, 26), "2026-11-26"), (1.5, "1.5")]
)
def test_a_name_that_yaml_does_not_read_as_a_word_is_to_be_quoted(name, shown):
    (problem,) = problems(plans={name: {"method": "random"}})
    assert (
        problem.startswith(f"[SETTINGS-NAME-NOT-TEXT] plans: YAML reads the name {shown}")
        and f'Put the name in quotes: "{shown}"' in problem
    )


def test_an_entry_set_to_null_is_dropped():
    model = {"path": "m", "calibration": "c", "evaluation": "e"}
    settings = parse_settings(
        {
            "models": {"demo": None, "mine": model},
            "plans": {"one": None, "two": {"method": "random"}},
            "studies": {"s": None},
        }
    )
    assert [list(held) for held in (settings.models, settings.plans, settings.studies)] == [["mine"], ["two"], []]


@pytest.mark.parametrize("key", ["path", "calibration", "evaluation"])
def test_braces_in_a_path_are_refused_with_the_way_out(key):
    model = {"path": "m", "calibration": "c", "evaluation": "e", key: "texts/{x}.txt"}
    (problem,) = problems(models={"m": model})
    assert f"models.m.{key}: has braces" in problem and "give a link to it" in problem


def test_paths_are_expanded_and_those_of_the_demo_are_found_from_anywhere(tmp_path, monkeypatch):
    model = {"path": "demo/model", "calibration": "~/c.txt", "evaluation": "demo/mine.txt"}
    held = parse_settings({"models": {"m": model}, "plans": {"p": {"method": "random"}}})
    workflow = tmp_path / "workflow"
    (workflow / "demo" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    made = placed_settings(held, workflow).models["m"]
    assert made.path == "workflow/demo/model" and made.evaluation == "demo/mine.txt"
    assert made.calibration == str(Path.home() / "c.txt")


def test_commands_and_workflow_share_their_default_windows():
    held = parse_settings(
        {"models": {"m": {"path": "m", "calibration": "c", "evaluation": "e"}}, "plans": {"p": {"method": "random"}}}
    )
    for section, windows in (("calibration", 16), ("validation", 16), ("evaluation", 32)):
        assert getattr(held, section).model_dump() == {"length": 512, "sequences": windows}


@pytest.mark.parametrize(
    ("changes", "key", "now"),
    [
        ({"selection": {"sequences": 8}}, "selection", "validation"),
        ({"sensitivity": {"outside": ["q8_0"]}}, "sensitivity.outside", "embeddings"),
        ({"plans": {"a": {"method": "optimal", "target_avg_bits": 5.0, "race": True}}}, "plans.a.race", "refine"),
    ],
)
def test_a_key_of_an_earlier_version_is_told_its_new_name(changes, key, now):
    assert f"[SETTINGS-RENAMED] {key}: was renamed. It is now {now}" in "\n".join(problems(**changes))


def test_the_keys_that_are_known_are_those_of_the_section_where_the_unknown_one_stands():
    told = "\n".join(
        problems(plans={"a": {"method": "random", "check": {"zzz": 1}}}, models={"m": {**MODEL, "zzz": 1}})
    )
    assert "plans.a.check.zzz: unknown key. Known: on_miss, tolerance" in told
    assert "models.m.zzz: unknown key. Known: path, revision, calibration" in told
