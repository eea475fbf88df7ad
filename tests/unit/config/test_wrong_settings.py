"""Wrong settings and configurations: one line each with code, key and hint, and no traceback of Snakemake's."""

import subprocess

import pytest

from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from tests.conftest import ROOT

# ----------------------------------------------------------------------------------------------------------- configuration

MODEL = {"path": "m", "calibration": "c.txt", "evaluation": "e.txt"}
ADAPTIVE_PLAN, RANDOM_PLAN = {"method": "adaptive"}, {"method": "random"}


def plan(**changes: object) -> dict:
    return {"plans": {"one": {**ADAPTIVE_PLAN, **changes}}}


def drawn(**changes: object) -> dict:
    return {"plans": {"one": {**RANDOM_PLAN, **changes}}}


def pruned(**changes: object) -> dict:
    return {"plans": {"one": {"method": "sparsegpt", **changes}}}


SETTINGS = [
    ("an unknown section", {"modells": {}}, "modells", "SETTINGS-UNKNOWN-KEY"),
    ("a section like no other", {"xyz": 1}, "xyz", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of a model", {"models": {"m": {**MODEL, "pth": "x"}}}, "models.m.pth", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of an adaptive plan", plan(step=1), "plans.one.step", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of a random plan", drawn(mxfp8_ratio=1), "plans.one.mxfp8_ratio", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of a check", plan(check={"on": "fail"}), "plans.one.check.on", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of compute", {"compute": {"devise": "cpu"}}, "compute.devise", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of calibration", {"calibration": {"len": 2}}, "calibration.len", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of evaluation", {"evaluation": {"len": 2}}, "evaluation.len", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of export", {"export": {"type": "f16"}}, "export.type", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of speed", {"speed": {"repeat": 2}}, "speed.repeat", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of tasks", {"tasks": {"name": []}}, "tasks.name", "SETTINGS-UNKNOWN-KEY"),
    ("a model without texts", {"models": {"m": {"path": "x"}}}, "models.m.calibration", "SETTINGS-MISSING"),
    ("no models", {"models": {}}, "models", "SETTINGS-INVALID"),
    ("a model that is a word", {"models": {"m": "demo"}}, "models.m", "SETTINGS-INVALID"),
    ("plans that are a list", {"plans": ["adaptive"]}, "plans", "SETTINGS-INVALID"),
    ("a plan that is a word", {"plans": {"one": "adaptive"}}, "plans.one", "SETTINGS-INVALID"),
    ("a plan without method", {"plans": {"one": {}}}, "plans.one", "SETTINGS-NO-METHOD"),
    ("a method that is unknown", {"plans": {"one": {"method": "genetics"}}}, "plans.one", "SETTINGS-INVALID"),
    (
        "a ratio over 1 in a plan",
        drawn(mxfp4_ratio=1.5),
        "plans.one.mxfp4_ratio",
        "SETTINGS-OUT-OF-RANGE",
    ),
    (
        "ratios over 1 together in a plan",
        drawn(mxfp4_ratio=0.7, bf16_ratio=0.6),
        "plans.one.bf16_ratio",
        "SETTINGS-INVALID",
    ),
    ("a negative step in a plan", plan(step_size=-1), "plans.one.step_size", "SETTINGS-OUT-OF-RANGE"),
    ("a step of NaN in a plan", plan(step_size=float("nan")), "plans.one.step_size", "SETTINGS-OUT-OF-RANGE"),
    ("an infinite step in a plan", plan(step_size=float("inf")), "plans.one.step_size", "SETTINGS-OUT-OF-RANGE"),
    ("a threshold of 0 in a plan", plan(ppl_threshold=0), "plans.one.ppl_threshold", "SETTINGS-OUT-OF-RANGE"),
    ("a target over 16", plan(target_avg_bits=17), "plans.one.target_avg_bits", "SETTINGS-OUT-OF-RANGE"),
    (
        "a target that is a word in the settings",
        plan(target_avg_bits="eight"),
        "plans.one.target_avg_bits",
        "SETTINGS-INVALID",
    ),
    ("an unknown format in a plan", plan(formats=["mxfp44"]), "plans.one.formats.0", "SETTINGS-INVALID"),
    ("formats that are a word", plan(formats="mxfp4"), "plans.one.formats", "SETTINGS-INVALID"),
    (
        "a palette of runtimes and more",
        {"plans": {"one": {"method": "optimal", "target_avg_bits": 6, "palette": ["runtime", "q4_k"]}}},
        "plans.one.palette",
        "SETTINGS-INVALID",
    ),
    (
        "a compression below W4 with A4",
        {"plans": {"one": {"method": "genetic", "target_compression": 0.5}}},
        "plans.one",
        "SETTINGS-INVALID",
    ),
    (
        "a width between widths for all channels",
        pruned(bit_allocation_method="uniform", target_avg_bits=3.5),
        "plans.one",
        "SETTINGS-INVALID",
    ),
    ("a mean width below all widths", pruned(target_avg_bits=2, bit_options=[3, 4]), "plans.one", "SETTINGS-INVALID"),
    (
        "no mean width for a budget",
        pruned(bit_allocation_method="budget", target_avg_bits=[]),
        "plans.one",
        "SETTINGS-INVALID",
    ),
    ("quantiles for other widths", pruned(quantiles=[0.5]), "plans.one", "SETTINGS-INVALID"),
    ("scores that count nothing", pruned(weights={"hessian": 0}), "plans.one", "SETTINGS-INVALID"),
    ("blocks that part a pattern", pruned(prunen=2, prunem=3), "plans.one", "SETTINGS-INVALID"),
    ("anchors of three", {"sensitivity": {"anchors": 3}}, "sensitivity.anchors", "SETTINGS-NOT-A-CHOICE"),
    ("anchors that are yes", {"sensitivity": {"anchors": True}}, "sensitivity.anchors", "SETTINGS-INVALID"),
    ("anchors of no palette", {"sensitivity": {"anchors": "2"}}, "sensitivity", "SETTINGS-INVALID"),
    ("memory that is none", {"sensitivity": {"memory_limit": "much"}}, "sensitivity.memory_limit", "SETTINGS-INVALID"),
    ("no shards", {"sensitivity": {"shards": 0}}, "sensitivity.shards", "SETTINGS-OUT-OF-RANGE"),
    (
        "a measurement on Gaussian inputs",
        {"sensitivity": {"random": True, "fisher": True}},
        "sensitivity",
        "SETTINGS-INVALID",
    ),
    ("no formats", plan(formats=[]), "plans.one.formats", "SETTINGS-INVALID"),
    ("a group that is half", plan(group_size=1.5), "plans.one.group_size", "SETTINGS-INVALID"),
    ("an unknown recipe in the settings", {"baselines": ["q4_kk"]}, "baselines.0", "SETTINGS-NOT-A-CHOICE"),
    (
        "outside without anchors in the settings",
        {"sensitivity": {"embeddings": ["q6_k"], "metric": "measured"}},
        "sensitivity",
        "SETTINGS-INVALID",
    ),
    (
        "an unknown format outside in the settings",
        {"sensitivity": {"embeddings": ["q6_kk"]}},
        "sensitivity.embeddings.0",
        "SETTINGS-INVALID",
    ),
    ("an importance matrix that is a file", {"imatrix": "layer_stats.safetensors"}, "imatrix", "SETTINGS-INVALID"),
    ("a recipe that cannot use importance", {"baselines": ["f16_imatrix"]}, "baselines.0", "SETTINGS-NOT-A-CHOICE"),
    ("an unknown dtype in the settings", {"compute": {"dtype": "fp8"}}, "compute.dtype", "SETTINGS-NOT-A-CHOICE"),
    ("an unknown device in the settings", {"compute": {"device": "gpu"}}, "compute.device", "SETTINGS-INVALID"),
    ("a window of 1 token", {"evaluation": {"length": 1}}, "evaluation.length", "SETTINGS-OUT-OF-RANGE"),
    ("repeats that are a word", {"speed": {"repeats": "many"}}, "speed.repeats", "SETTINGS-INVALID"),
    (
        "a tolerance below 0 in a check",
        plan(check={"tolerance": -1}),
        "plans.one.check.tolerance",
        "SETTINGS-OUT-OF-RANGE",
    ),
    ("a name with a space", {"plans": {"a b": RANDOM_PLAN}}, "plans.a b", "SETTINGS-INVALID"),
    ("a name that leads elsewhere", {"plans": {"../x": RANDOM_PLAN}}, "plans.../x", "SETTINGS-INVALID"),
    ("a plan with the name of a baseline", {"plans": {"f16": RANDOM_PLAN}}, "configuration", "SETTINGS-INVALID"),
]


@pytest.mark.parametrize(("changes", "place", "code"), [case[1:] for case in SETTINGS], ids=[c[0] for c in SETTINGS])
def test_a_wrong_setting_is_one_line_with_its_code_its_key_and_a_hint(changes, place, code):
    with pytest.raises(UserError) as caught:
        parse_settings({"models": {"demo": MODEL}, "plans": {"one": ADAPTIVE_PLAN}, **changes})
    problems = caught.value.problems
    assert (code, place) in [(problem.code, problem.where) for problem in problems], problems
    assert all(problem.hint and "\n" not in str(problem) for problem in problems), problems


CONFIGS = [
    ("no YAML", "models: [", "not valid JSON or YAML", "indentation"),
    ("a key given twice", "speed:\n  repeats: 1\n  repeats: 2\n", "repeats", "[SETTINGS-KEY-TWICE] "),
    ("an unknown key", "plans: {one: {method: adaptive, step: 1}}", "plans.one.step", "[SETTINGS-UNKNOWN-KEY] "),
    (
        "a ratio over 1",
        "plans: {one: {method: random, mxfp4_ratio: 2}}",
        "plans.one.mxfp4_ratio",
        "[SETTINGS-OUT-OF-RANGE] ",
    ),
    (
        "formats that a runtime refuses",
        "{models: {demo: {runtimes: [mlx]}}, plans: {one: {method: optimal, target_avg_bits: 6}}}",
        "plans.one.palette: has q2_k, q3_k, q4_k, q5_k, q6_k, q8_0, which mlx of model demo cannot store",
        "[RUNTIME-REFUSED] ",
    ),
    (
        "a palette of runtimes where there are none",
        "{models: {demo: {runtimes: []}}, plans: {one: {method: optimal, target_avg_bits: 6, palette: runtime}}}",
        "plans.one.palette: is runtime, and models demo name no runtime",
        "[RUNTIME-NO-PALETTE] ",
    ),
    ("a list", "[models]", "Config file must be", "keys at top level"),
]


@pytest.mark.parametrize(
    ("text", "names", "way_out"), [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS]
)
def test_snakemake_stops_at_a_wrong_configuration_without_a_traceback(text, names, way_out, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    line = ["snakemake", "--dry-run", "--configfile", str(tmp_path / "config.yaml"), "--directory", str(tmp_path)]
    made = subprocess.run(
        [*line, "--snakefile", str(ROOT / "Snakefile")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = made.stdout + made.stderr
    assert made.returncode in (1, 2) and "Traceback" not in said, said
    assert names in said and way_out in said, said
