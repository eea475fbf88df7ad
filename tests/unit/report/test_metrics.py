"""The list of metrics: every output shows what is in it, and one line adds a metric to them all."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitplan.report.comparison import COLUMNS, comparison_json, comparison_table
from bitplan.report.metrics import METRICS, SCORES, SHOWN
from tests.conftest import SCRIPTS

TOY = 'Metric("worst", "worst KL", NATS, "{:.3f}", "KL of the worst token", "lower", "kl_worst"),'
SCORED = {"ppl": 3.0, "ppl_error": 0.1, "kl_mean": 0.5, "kl_mean_error": 0.01, "kl_p99": 0.875, "top1_agreement": 0.9}
SPEED = {"ratio": {"median": 1.5, "min": 1.0, "max": 2.0, "stable": True}}
BITS = {"avg_bits": 5.0, "avg_bits_layers": 4.5, "target_avg_bits": None, "target_missed_by": None}
PLAN = {"summary": {"method": "random", "cost": {"block_forward_tokens": 7}}}


def write_results(folder: Path) -> None:
    """Results of a plan `one` and a baseline `f16`, with a figure that no metric shows yet."""
    scores = {**SCORED, "kl_worst": 2.125}
    figures = {**SPEED, "generation_tokens_per_second": {"median": 10.0, "stable": True}}
    plan = {"bits.json": BITS, "plan.json": PLAN, "perplexity.json": scores}
    contents = {f"plans/one/{name}": content for name, content in plan.items()}
    for place, name in (("plans/one/gguf", "one"), ("baselines/f16", "f16")):
        (folder / place).mkdir(parents=True)
        (folder / place / "model.gguf").write_bytes(b"x" * 100)
        contents |= {f"{place}/perplexity.json": scores, f"{place}/speed.json": {"models": {name: figures}}}
    for path, content in contents.items():
        (folder / path).write_text(json.dumps(content))


OUTPUTS = {"--output": "c.tsv", "--json": "c.json", "--text": "c.txt", "--page": "c.html", "--figure": "c.svg"}


def report(scripts: Path, tiny: Path, folder: Path) -> dict[str, str]:
    """Run report.py of a tree on the results in `folder`; return the content of each output by its kind."""
    model = folder / "model.json"
    subprocess.run([sys.executable, scripts / "describe_model.py", "--model", tiny, "--output", model], check=True)
    outputs = [word for flag, name in OUTPUTS.items() for word in (flag, folder / name)]
    given = ("--model", model, "--results", folder, "--plan", "one", "--baseline", "f16")
    subprocess.run([sys.executable, scripts / "report.py", *given, *outputs], check=True, capture_output=True)
    return {Path(name).suffix: (folder / name).read_text() for name in OUTPUTS.values()}


def assert_shown(made: dict[str, str], key: str, heading: str, value: float, text: str) -> None:
    rows = {row["name"]: row for row in csv.DictReader(made[".tsv"].splitlines(), delimiter="\t")}
    assert [float(rows["one"][name]) for name in (key, f"file_{key}")] == [value, value]
    assert (rows["f16"][key], float(rows["f16"][f"file_{key}"])) == ("", value)
    facts = json.loads(made[".json"])
    assert facts["rows"][0][f"file_{key}"] == value
    assert {"key": key, "heading": heading}.items() <= next(m for m in facts["metrics"] if m["key"] == key).items()
    head, *lines = made[".txt"].splitlines()
    assert heading in head and f"file {heading}" in head
    assert next(line for line in lines if line.startswith("one")).split().count(text) == 2
    assert f">{heading}</button></th>" in made[".html"] and f">{text}</td>" in made[".html"]


@pytest.fixture(scope="module")
def outputs(tiny, tmp_path_factory) -> dict[str, str]:
    """The outputs of report.py in a copy of scripts/ whose list of metrics has one line more."""
    folder = tmp_path_factory.mktemp("metric")
    shutil.copytree(SCRIPTS, folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "scripts/bitplan/report/metrics.py"
    before = path.read_text()
    path.write_text(before.replace("SCORES = (\n", f"SCORES = (\n    {TOY}\n"))
    assert len(path.read_text().splitlines()) == len(before.splitlines()) + 1
    write_results(folder / "results")
    return report(folder / "scripts", tiny, folder / "results")


def test_the_hundredth_worst_token_is_shown_everywhere(outputs):
    assert_shown(outputs, "kl_p99", "KL p99", 0.875, "0.8750")


def test_one_line_in_one_file_adds_a_metric_to_every_output(outputs):
    assert_shown(outputs, "worst", "worst KL", 2.125, "2.125")


def test_every_metric_has_a_key_of_its_own_and_says_what_it_is():
    assert len({metric.key for metric in METRICS}) == len(METRICS) and COLUMNS[6:] == tuple(m.key for m in METRICS)
    assert all(metric.legend and metric.better in ("lower", "higher", "") for metric in METRICS)
    assert all(metric.source for metric in SCORES) and len({metric.heading for metric in SHOWN}) == len(SHOWN)


@pytest.mark.parametrize("metric", SHOWN, ids=lambda metric: metric.key)
def test_a_metric_that_no_row_has_takes_no_room_and_one_that_a_row_has_is_explained(metric):
    row = {"name": "one", "kl": 0.1, **dict.fromkeys(m.key for m in METRICS if m.key != "kl")}
    assert metric.key == "kl" or metric not in comparison_table([row]).columns
    table = comparison_table([{**row, metric.key: 0}])
    assert metric in table.columns
    assert metric.key.startswith("file_") or f"{metric.heading}: {metric.legend}" in table.note
    assert comparison_json([row])["rows"] == [row]
