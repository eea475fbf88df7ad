"""`bitplan export`: a plan as a file or folder, by the code that the workflow exports with."""

import argparse
import json
import shlex
from pathlib import Path

import pytest

from bitplan.console import export, plan
from bitplan.console.project import project_of
from bitplan.core.errors import UserError
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.plan import LayerPlan, Plan, write_plan
from tests.families import TEXT, make_family


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_family("llama", tmp_path_factory.mktemp("export") / "model")


@pytest.fixture
def a_plan(model, tmp_path) -> Path:
    info = describe(Checkpoint.open(model))
    path = tmp_path / "mine" / "plan.json"
    path.parent.mkdir()
    layers = {layer.name: LayerPlan("int4", "bf16", 32) for layer in info.quantizable}
    write_plan(path, Plan(layers), LayerPlan(), info)
    return path


def flags(*words: object) -> argparse.Namespace:
    return export.build_parser().parse_args([str(word) for word in words])


def test_a_plan_becomes_a_folder_of_a_runtime_with_a_report_if_one_is_wanted(model, a_plan, tmp_path, capsys):
    for report in ((), ("--report", tmp_path / "report.json")):
        output = tmp_path / f"made{len(report)}"
        export.main(flags(a_plan, "--model", model, "--runtime", "mlx", *report, "-o", output))
        assert (output / "config.json").is_file() and "mlx_lm.generate" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["plan"] == "mine"


# Rounding is a process of its own, as in the workflow: most of this test's time is its start.
def test_a_plan_is_rounded_on_a_text_before_it_is_written(model, a_plan, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "CALIBRATION_WINDOWS", 1)
    how = ("--runtime", "mlx", "--rounding", "feedback", "--text", TEXT, "--report", tmp_path / "report.json")
    export.main(flags(a_plan, "--model", model, *how, "-o", tmp_path / "made"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rounded"]["exact"] > 0 and report["plan"] == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "made.meta.json", "mine", "report.json"]


def test_rounding_without_a_text_is_refused(a_plan, model, tmp_path):
    with pytest.raises(UserError, match="--rounding feedback.*Give --text"):
        export.main(flags(a_plan, "--model", model, "--rounding", "feedback", "-o", tmp_path / "made.gguf"))


def test_the_command_that_bitplan_plan_names_is_one(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(model), "--text", str(TEXT), "--runtime", "mlx", "-o", "plan.json"]
    args, project = plan.build_parser().parse_args(words), project_of(str(model), tmp_path)
    importance = project.result("layer_stats.safetensors")
    importance.parent.mkdir(parents=True)
    importance.touch()
    made = flags(*shlex.split(plan.export_command(args, project))[2:])
    assert (str(made.plan), made.runtime, str(made.output)) == ("plan.json", "mlx", "plan")
    assert (made.imatrix.resolve(), made.rounding, made.text) == (importance, "feedback", TEXT)
