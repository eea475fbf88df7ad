"""Prices of candidates that quantize a layer's inputs as well as its weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from bitplan.core.files import read_json, read_table
from bitplan.formats.pairs import parse_pair
from bitplan.plans.plan import read_plan
from bitplan.search.genetic.rows import read_sensitivity
from bitplan.sensitivity.local_errors import SensitivitySettings, activation_choices, choice_named
from bitplan.sensitivity.run import write_sensitivity
from bitplan.sensitivity.table import read_sensitivity_table
from tests.measured_models import ALL, PRICED

# ------------------------------------------------------------------------------------------ candidates with inputs


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("q4_k", ("q4_k", "bf16", None)),
        ("mxfp4/mxfp8", ("mxfp4", "mxfp8", None)),
        ("int4_g128/int8_token", ("int4", "int8_token", 128)),
        ("mxfp8/bf16", ("mxfp8", "bf16", None)),
    ],
)
def test_a_palettes_name_says_the_formats_of_weights_and_inputs(name, formats):
    made = parse_pair(name)
    assert (made.wq, made.aq, made.group_size) == formats
    assert made.name == name.removesuffix("/bf16") and parse_pair(made.name) == made


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mxfp4/q4_k", "weights alone"),
        ("mxfp5", "mxfp4"),
        ("mxfp4/", "not known"),
        ("q4_k_g64", "no groups"),
        ("a/b/c", "not known"),
    ],
)
def test_a_name_that_is_no_candidate_is_refused(name, what):
    with pytest.raises(ValueError, match=what):
        parse_pair(name)


@pytest.fixture(scope="module")
def mx_table(llama, tmp_path_factory) -> Path:
    """A table of MX formats of weights, and of weights and inputs, priced."""
    palette = map(choice_named, ("mxfp4", "mxfp4/mxfp4", "mxfp8/mxfp8", "bf16"))
    settings = SensitivitySettings((*activation_choices("tensor"), *palette))
    path = tmp_path_factory.mktemp("mx") / "s.tsv"
    made = llama.measured(path, replace(ALL, draws=16), settings)
    write_sensitivity(path, made.rows, made.smoothing)
    return path


def test_candidates_with_inputs_are_priced_as_they_are_measured(mx_table):
    rows = [row for row in read_table(mx_table) if row["inputs"] == "mxfp8"]
    priced, measured = (sum(float(row[column]) for row in rows) for column in ("price", "kld"))
    assert rows and priced == pytest.approx(measured, rel=0.25)


def test_a_search_chooses_among_weights_with_inputs(llama, mx_table, tmp_path, command):
    palette = ("--palette", "mxfp4/mxfp4", "mxfp8/mxfp8", "bf16")
    words = ("--model", llama.folder, "--sensitivity", mx_table, "--no-correct", "--groups", "none", *palette)
    command("optimal_search.py", *words, "--target-avg-bits", 14, "--output-plan", tmp_path / "plan.json")
    plan = read_plan(tmp_path / "plan.json", llama.opened.info)
    pairs = {(plan.of(layer.name).wq, plan.of(layer.name).aq) for layer in llama.opened.info.quantizable}
    assert pairs <= {("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("bf16", "bf16")} and len(pairs) > 1
    assert sum(read_json(tmp_path / "plan.json")["summary"]["kld_from"].values()) == 14


def test_an_allocation_chooses_among_weights_with_inputs(mx_table, tmp_path, command):
    words = ("--sensitivity", mx_table, "--palette", "mxfp4/mxfp4", "mxfp8/mxfp8", "--target-avg-bits", 5)
    command("allocate_bits.py", *words, "--output", tmp_path / "front.json")
    made = read_json(tmp_path / "front.json")["allocations"][0]
    assert set(made["plan"].values()) == {"mxfp4/mxfp4", "mxfp8/mxfp8"} and made["kld_from"] == {"measured": 14}


def test_smoothed_inputs_are_refused_where_layers_choose_by_themselves(llama, tmp_path):
    settings = SensitivitySettings((choice_named("mxfp4/mxfp4"),), (0.5,))
    made = llama.measured(tmp_path / "s.tsv", PRICED, settings)
    write_sensitivity(tmp_path / "s.tsv", made.rows, made.smoothing)
    with pytest.raises(UserError, match="SENSITIVITY-SMOOTHED"):
        read_sensitivity_table(tmp_path / "s.tsv", ["mxfp4/mxfp4"])
    with pytest.raises(UserError, match="SENSITIVITY-SMOOTHED"):
        read_sensitivity(tmp_path / "s.tsv").check_unsmoothed([("mxfp4", "mxfp4")])


def test_the_genetic_search_chooses_among_weights_with_inputs_by_their_price(llama, mx_table, tmp_path, command):
    words = (
        "--model",
        llama.folder,
        "--sensitivity",
        mx_table,
        "--ga_gen",
        5,
        "--metric",
        "kld",
        "--target-avg-bits",
        14,
    )
    palette = ("--palette", "mxfp4/mxfp4", "mxfp8/mxfp8", "bf16")
    command("mixed_precision_ptq.py", *words, *palette, "--output-plan", tmp_path / "plan.json")
    plan = read_plan(tmp_path / "plan.json", llama.opened.info)
    pairs = {(plan.of(layer.name).wq, plan.of(layer.name).aq) for layer in llama.opened.info.quantizable}
    assert pairs <= {("mxfp4", "mxfp4"), ("mxfp8", "mxfp8"), ("bf16", "bf16")} and len(pairs) > 1
    assert sum(read_json(tmp_path / "plan.json")["summary"]["kld_from"].values()) == 14


def test_settings_refuse_inputs_that_would_be_measured_smoothed():
    config = {
        "models": {"m": {"path": "p", "calibration": "c", "evaluation": "e"}},
        "plans": {"mx": {"method": "optimal", "target_avg_bits": 5, "palette": ["mxfp4/mxfp4", "mxfp8/bf16"]}},
        "sensitivity": {"metric": "gradient", "palette": ["mxfp4/mxfp4", "mxfp8"]},
        "calibration": {"sequences": 4},
    }
    with pytest.raises(UserError, match="set sensitivity.smooth_alpha to"):
        parse_settings(config)
    config["sensitivity"]["smooth_alpha"] = []
    assert parse_settings(config).plans["mx"].palette == ["mxfp4/mxfp4", "mxfp8"]
    config["sensitivity"] |= {"metric": "measured"}
    with pytest.raises(UserError, match="set sensitivity.metric to auto or gradient"):
        parse_settings(config)
    del config["sensitivity"]["metric"]
    assert parse_settings(config).priced
    with pytest.raises(UserError, match="set sensitivity.random to false"):
        parse_settings({**config, "sensitivity": {**config["sensitivity"], "random": True}})
