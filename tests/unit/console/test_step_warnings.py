"""What the steps warned of reaches the end of a run: each warning once, with its log."""

import json
from pathlib import Path

import pytest

from bitplan.console import compare
from bitplan.console.project import Project
from bitplan.console.step_warnings import MOST, StepWarning, records_of, tell_warnings, warnings_of
from tests.conftest import ROOT
from tests.families import TEXT

DEMO = ROOT / "demo"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path / "work", "tiny")


def record(project: Project, name: str, *warnings: str, log: str | None = "logs/step.log") -> Path:
    path = project.result(f"{name}.meta.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"warnings": warnings, "log": log}))
    return path


def lines(project: Project, *plans: str, baselines: tuple[str, ...] = ()) -> list[str]:
    return [warning.line for warning in warnings_of(project, records_of(project, plans, baselines))]


def test_a_warning_is_one_line_with_the_log_of_its_step_as_it_is_found_from_here(project):
    record(project, "base.gguf", "results/tiny/base.gguf: odd\ntokens")
    assert lines(project) == ["warning: base.gguf: odd tokens (log: work/logs/step.log)"]


def test_warnings_of_the_plan_s_steps_come_first_and_those_of_other_plans_are_left_out(project):
    for name in (
        "plans/mine/rounding/plan.json",
        "plans/other/plan.json",
        "sensitivity.tsv",
        "baselines/q4_k_m/model.gguf",
    ):
        record(project, name, f"of {name}", log=None)
    told = ["plans/mine/rounding/plan.json", "sensitivity.tsv", "baselines/q4_k_m/model.gguf"]
    assert lines(project, "mine", baselines=("q4_k_m",)) == [f"warning: of {name}" for name in told]


def test_warnings_that_differ_in_numbers_alone_are_told_once(project):
    record(project, "plans/mine/plan.json", "14 of 14 layers", "14 of 14 layers", log="logs/search.log")
    record(project, "sensitivity.tsv", "15 of 15 layers", "14 of 14 layers")
    assert lines(project, "mine") == ["warning: 14 of 14 layers (and 1 alike; log: work/logs/search.log)"]


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_record_of_an_earlier_version_or_a_damaged_one_has_no_warnings(content, project):
    record(project, "model.json").write_text(content)
    assert lines(project) == []


def test_of_many_warnings_the_first_are_told_and_how_many_more_there_are(capsys):
    tell_warnings([StepWarning(f"odd {letter}") for letter in "abcdefghijkl"])
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "warning: odd a" and told[MOST:] == [f"warning: {12 - MOST} more in the logs"]


def test_compare_tells_the_warnings_of_the_models_plans_and_baselines_of_its_configuration(
    tmp_path, monkeypatch, capsys
):
    plans = {"mine": {"method": "optimal", "target_avg_bits": 5}}
    texts = {"calibration": str(TEXT), "evaluation": str(TEXT)}
    config = {"models": {"tiny": {"path": str(DEMO / "model"), **texts}}, "plans": plans, "baselines": ["f16"]}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    for name in ("model.json", "plans/mine/plan.json", "plans/removed/plan.json", "baselines/f16/model.gguf"):
        record(Project(tmp_path, "tiny"), name, f"of {name}", log=None)
    monkeypatch.setattr(compare, "run_workflow", lambda *_: None)
    compare.main(compare.build_parser().parse_args([str(tmp_path)]))
    told = ["plans/mine/plan.json", "model.json", "baselines/f16/model.gguf"]
    assert capsys.readouterr().err.splitlines() == [f"warning: of {name}" for name in told]
