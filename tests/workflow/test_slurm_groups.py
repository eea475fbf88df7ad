"""What a run with many plans hands to SLURM, with and without profiles/slurm-groups: how many jobs, and what they ask for. No cluster is needed."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from bitplan.runtimes.registry import RUNTIMES
from tests.conftest import ROOT
from tests.workflow.conftest import stub_text

PLANS, WEIGHTS = 20, 15_230_000_000  # Qwen2.5-7B in bfloat16
PROFILE = ROOT / "profiles" / "slurm-groups"


def settings_of(folder: Path) -> dict:
    """Settings of a 7B model whose weights take no room on the disk, with 20 optimal plans."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    with (folder / "model" / "model.safetensors").open("wb") as weights:
        weights.truncate(WEIGHTS)
    (folder / "text.txt").write_text(stub_text("text"))
    plan = {"method": "optimal", "rounding": "feedback"}
    return {
        "models": {"seven": {"path": "model", "calibration": "text.txt", "evaluation": "text.txt"}},
        "plans": {f"plan-{i}": {**plan, "target_avg_bits": round(3 + i / 5, 1)} for i in range(PLANS)},
        "baselines": ["q4_k_m"],
    }


def jobs_of(folder: Path, *profile: str) -> list[dict]:
    """The jobs of a dry run that SLURM would get."""
    flags = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "mine.yaml", "--replace-workflow-config"]
    line = [sys.executable, str(ROOT / "tests" / "workflow" / "cluster_jobs.py"), *flags, *profile]
    line += ["--workflow-profile", str(ROOT / "profiles" / "slurm")]
    made = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    return [job for job in json.loads(made.stdout) if not job["local"] and job["steps"] != ["all"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("seven")
    (made / "mine.yaml").write_text(json.dumps(settings_of(made)))
    return made


@pytest.fixture(scope="module")
def grouped(folder) -> list[dict]:
    return jobs_of(folder, "--profile", str(PROFILE))


@pytest.fixture(scope="module")
def single(folder) -> list[dict]:
    return jobs_of(folder)


def test_a_run_of_20_plans_is_at_most_60_jobs(single, grouped):
    assert all(job["group"] is None for job in single) and len(single) > 120
    steps = [step for job in grouped for step in job["steps"]]
    assert sorted(steps) == sorted(step for job in single for step in job["steps"]), "the same steps"
    assert len(grouped) <= 60
    assert Counter(job["group"] for job in grouped if job["group"]) == {
        "search": 10,
        "score": 4,
        "export": 10,
        "timing": 5,
    }


def test_long_steps_stay_jobs_of_their_own(grouped):
    single = {job["steps"][0].split()[0] for job in grouped if job["group"] is None}
    assert single == {
        "estimate", "layer_stats", "evaluation", "validation", "sensitivity", "base_gguf", "baseline_gguf", "baseline_perplexity", "rounded_plan",
    }  # fmt: skip


def test_an_export_and_its_score_are_in_one_job(grouped):
    for job in (job for job in grouped if job["group"] == "export"):
        plans = [
            {step.split()[2] for step in job["steps"] if step.startswith(rule)} for rule in ("plan_gguf", "plan_r")
        ]
        assert plans[0] == plans[1] and len(plans[0]) == 2


def test_steps_of_a_job_run_in_turn_the_memory_of_the_largest_and_the_time_of_all(single, grouped):
    alone = {job["steps"][0]: job["asks"] for job in single}
    for job in (job for job in grouped if job["group"]):
        asks, steps = job["asks"], [alone[step] for step in job["steps"]]
        assert asks["mem_mb"] == max(step["mem_mb"] for step in steps)
        assert asks["runtime"] == sum(step["runtime"] for step in steps)
        assert asks["_cores"] == (4 if job["group"] == "timing" else 1)


def test_timings_have_a_node_for_themselves(grouped):
    timing = [job for job in grouped if job["group"] == "timing"]
    assert {step.split()[0] for job in timing for step in job["steps"]} == {"plan_speed", "baseline_speed"}
    assert all(job["asks"]["slurm_extra"] == "--exclusive" for job in timing)


def test_the_export_of_every_runtime_is_grouped():
    groups = dict(line.split("=") for line in yaml.safe_load((PROFILE / "profile.yaml").read_text())["groups"])
    assert {name for name in groups if groups[name] == "export"} == {
        *(f"plan_{name}" for name in RUNTIMES),
        "plan_runtime_perplexity",
    }
