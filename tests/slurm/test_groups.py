"""Plans in jobs of several steps: the same files as single jobs make, and a job that dies is run again whole and is one line."""

import itertools
import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import wait_until
from tests.slurm.runs import ClusterRun, make_folder, run_locally
from tests.slurm.test_demo import results_of

PLANS = ("three", "four", "six")
SETTINGS = {
    "models": {
        "demo": {"path": "demo/model", "calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}
    },
    "plans": {
        name: {"method": "optimal", "target_avg_bits": bits, "correct": False}
        for name, bits in zip(PLANS, (3.5, 4.5, 6.0), strict=True)
    },
    "baselines": ["q4_k_m"],
    "calibration": {"length": 128, "sequences": 4},
    "validation": {"length": 128, "sequences": 2},
    "evaluation": {"length": 512, "sequences": 24},
    "sensitivity": {"draws": 1},
    "speed": {"max_tokens": 8, "repeats": 1, "warmup": 0},
}
GROUPS = ("--profile", str(ROOT / "profiles" / "slurm-groups"))


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("local") / "run", SETTINGS)
    run_locally(folder, "gguf", "perplexity")
    return folder


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory) -> ClusterRun:
    """A run in which the job of the scores is cancelled once while it works."""
    made = ClusterRun(cluster, make_folder(tmp_path_factory.mktemp("cluster") / "run", SETTINGS))
    try:
        made.start(*GROUPS)
        wait_until(lambda: _working(made, "score"), 600, "the scores")
        cluster.ask("scancel", _working(made, "score"))
        assert made.finish() == 0, made.said[-3000:]
    finally:
        made.stop()
    return made


def _working(run: ClusterRun, group: str) -> str:
    """The number of the running job of a group, once a step in it has begun to write its log; nothing before."""
    assert run.process is not None and run.process.poll() is None, run.said[-3000:]
    if not any((run.folder / f"logs/demo/{plan}/perplexity.log").exists() for plan in PLANS):
        return ""
    running = run.cluster.ask("squeue", "--noheader", "--states=running", "--format=%k %i").splitlines()
    return next((line.split()[1] for line in running if line.startswith(f"rule_{group}_")), "")


def test_results_of_grouped_jobs_are_byte_for_byte_those_of_a_local_run(finished, local):
    ours, wanted = results_of(finished.folder), results_of(local)
    assert ours.keys() >= wanted.keys() and len(wanted) > 30
    assert [name for name in wanted if ours[name] != wanted[name]] == []


def test_three_plans_are_two_jobs_for_their_searches_one_for_their_scores_and_two_for_their_exports(finished):
    submitted = re.findall(r"has been submitted with SLURM jobid .*slurm_logs/(rule|group)_(\w+?)[_/]", finished.said)
    groups = sorted(name for kind, name in submitted if kind == "group")
    assert groups == ["export", "export", "score", "score", "search", "search", "timing"], (
        "the scores were cancelled once"
    )
    assert len(submitted) - len(groups) == 7, (
        "statistics, prices, the text, the base file, the baseline and its score, the estimate"
    )


def test_a_grouped_job_that_dies_is_run_again_and_is_one_line(finished):
    assert "1 job ended early and was run again:" in finished.said
    line = finished.said.splitlines()[
        finished.said.splitlines().index("1 job ended early and was run again:") + 1
    ].strip()
    named = r"score, 3 steps \(results/demo/plans/four/perplexity\.json, .* and 1 more\)"
    logs = r"(logs/demo/\w+/perplexity\.log, )*\.snakemake/slurm_logs/group_score_\w+/\d+\.log"
    expected = rf"{named}: SLURM job \d+ was cancelled\. Log: {logs}"
    assert re.fullmatch(expected, line), line
    assert "could not be submitted" not in finished.said, "the steps of a group are no jobs of their own"


def test_timings_of_one_job_do_not_run_side_by_side(finished):
    folder = finished.folder / "results" / "demo"
    places = [*(f"plans/{plan}/gguf" for plan in PLANS), "baselines/q4_k_m"]
    records = [json.loads((folder / place / "speed.json.meta.json").read_text()) for place in places]
    ends = [datetime.fromisoformat(record["finished"]).timestamp() for record in records]
    spans = sorted((end - record["seconds"], end) for end, record in zip(ends, records, strict=True))
    for (_, ended), (begun, _) in itertools.pairwise(spans):
        assert begun > ended - 2, f"{spans}, ends to the second"
