"""The workflow as a module of another one: rules under a prefix, settings of the other workflow's own."""

import json

import yaml

from tests.conftest import ROOT
from tests.workflow.conftest import snakemake

SNAKEFILE = f"""
configfile: "mine.yaml"

module bitplan:
    snakefile: {str(ROOT / "Snakefile")!r}
    config: config

use rule * from bitplan as bitplan_*

rule everything:
    default_target: True
    input: "results/mine/plans/chance/bits.json"
"""


def test_another_workflow_runs_a_plan_through_this_one(tmp_path, demo):
    texts = {name: str(demo / f"{name}.txt") for name in ("calibration", "evaluation")}
    config = {
        "models": {"mine": {"path": str(demo / "model"), **texts}},
        "plans": {"chance": {"method": "random", "seed": 7}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    run = snakemake(tmp_path, "--cores", "1")
    assert run.returncode == 0, run.stderr[-2000:]
    plan = tmp_path / "results/mine/plans/chance"
    assert json.loads((plan / "bits.json").read_text())["avg_bits"] < 16
    assert json.loads((plan / "plan.json").read_text())["summary"]["seed"] == 7
    again = snakemake(tmp_path, "--cores", "1")
    assert "Nothing to be done" in again.stdout + again.stderr
