"""What the workflow knows of SLURM, without one: the queue's answer, the words for what happened, the commands that ask again."""

import logging
import os
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from bitplan.workflow.slurm.endings import JobEndings, ending, group_ending, what_happened
from bitplan.workflow.slurm.queue import PREFIX, QueuedJob, parse_queue
from tests.conftest import ROOT

PROFILE = ROOT / "profiles" / "slurm"


def test_only_jobs_of_the_workflow_in_this_folder_are_its_own():
    queue = "\n".join(
        (
            "7|RUNNING|bitplan_1a2b|rule_layer_stats_wildcards_demo|/data/my models",
            "8|PENDING|bitplan_1a2b|rule_layer_stats_wildcards_demo|/data/others",
            "9|RUNNING|other_tool|rule_layer_stats_wildcards_demo|/data/my models",
            "10|PENDING|bitplan_1a2b|rule_plan_gguf_wildcards_demo_a|/data/my models",
        )
    )
    assert parse_queue(queue, Path("/data/my models")) == [
        QueuedJob("7", "RUNNING", "layer_stats demo"),
        QueuedJob("10", "PENDING", "plan_gguf demo_a"),
    ]


def test_the_profile_names_jobs_as_the_queue_looks_for_them():
    profile = yaml.safe_load((PROFILE / "profile.yaml").read_text())
    assert f"{profile['slurm-jobname-prefix']}_" == PREFIX


@pytest.mark.parametrize(
    ("state", "text", "words"),
    [
        ("CANCELLED", "*** JOB 12 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***", "was cancelled"),
        ("CANCELLED", "StepId=12.0 exceeded memory limit (2 > 1), being killed", "ran out of memory"),
        ("FAILED", "Detected 1 oom_kill event in StepId=12.0", "ran out of memory"),
        ("OUT_OF_MEMORY", "", "ran out of memory"),
        ("TIMEOUT", "", "ran out of time"),
        ("NODE_FAIL", "", "lost its node"),
        ("FAILED", "srun: error: n1: task 0: Exited with exit code 1", "failed"),
        ("STOPPED", "", "ended (SLURM-job '12' failed, SLURM status is: 'STOPPED'.)"),
    ],
)
def test_what_happened_is_said_in_words(state, text, words):
    assert what_happened(f"SLURM-job '12' failed, SLURM status is: '{state}'.", text) == words


def test_a_log_that_was_never_written_is_not_named(tmp_path):
    (tmp_path / "12.log").write_text("x")
    logs = [str(tmp_path / "step.log"), str(tmp_path / "12.log")]
    line = ending("plan_gguf", ["model.gguf"], "12", "SLURM status is: 'FAILED'", logs)
    assert line == f"plan_gguf (model.gguf): SLURM job 12 failed. Log: {tmp_path / '12.log'}"
    assert ending("plan_gguf", [], "12", "", logs[:1]).endswith("Log: none was written")


def test_endings_are_taken_from_snakemakes_log_and_counted(capsys):
    endings = JobEndings()
    log = logging.Logger("snakemake")
    log.addHandler(endings)
    facts = {"rule_name": "bits", "output": ["bits.json"], "log": [], "rule_msg": "SLURM status is: 'TIMEOUT'"}
    assert endings.summary(True) == ""
    log.error("Error in rule bits", extra={"event": "job_error", "aux": {"external_jobid": "5"}, **facts})
    log.error("another error")
    line = "bits (bits.json): SLURM job 5 ran out of time. Log: none was written"
    assert capsys.readouterr().err == f"SLURM: {line}\n"
    assert endings.summary(True) == f"1 job ended early and was run again:\n  {line}"
    assert endings.summary(False) == f"1 job ended early:\n  {line}"


STEPS = [
    {"rule_name": "plan_gguf", "output": ["a/model.gguf", "a/report.json"], "log": ["a.log"]},
    {"rule_name": "plan_runtime_perplexity", "output": ["a/perplexity.json"], "log": ["b.log"]},
    {"rule_name": "plan_gguf", "output": ["c/model.gguf"], "log": ["c.log"]},
]
NAMED = "export, 3 steps (a/model.gguf, a/perplexity.json and 1 more): "


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("*** JOB 12 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***", "was cancelled"),
        ("*** JOB 12 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", "ran out of time"),
        ("exceeded memory limit (2 > 1), being killed\n*** JOB 12 ON n1 CANCELLED AT", "ran out of memory"),
        ("Error in rule plan_gguf:\n    jobid: 0", "failed in plan_gguf"),
        ("", "ended"),
    ],
)
def test_what_happened_to_a_group_is_read_in_its_log(tmp_path, text, words):
    log = tmp_path / "12.log"
    log.write_text(text)
    assert group_ending("export", STEPS, "12", [str(log)]) == f"{NAMED}SLURM job 12 {words}. Log: {log}"


def test_the_logs_of_a_groups_failed_steps_are_named_and_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.log", "b.log", "12.log"):
        (tmp_path / name).write_text("Error in rule plan_gguf:")
    assert group_ending("export", STEPS, "12", ["12.log"]).endswith("failed in plan_gguf. Log: a.log, 12.log")


def test_a_group_is_one_ending_and_its_steps_are_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused = tmp_path / ".snakemake" / "slurm" / "refused.log"
    refused.parent.mkdir(parents=True)
    refused.write_text("sbatch: error: Requested node configuration is not available\n\n")
    endings, log = JobEndings(), logging.Logger("snakemake")
    log.addHandler(endings)
    step = {"rule_name": "plan_gguf", "output": ["a"], "log": [], "rule_msg": None, "aux": {}, "indent": True}
    group = {"event": "group_error", "groupid": "export", "aux_logs": [], "job_error_info": STEPS}
    log.error("Error in group export", extra=group)
    log.error("Error in rule plan_gguf", extra={"event": "job_error", **step})
    said = "could not be submitted: sbatch: error: Requested node configuration is not available"
    assert endings.lines == [NAMED + said]


@pytest.fixture
def asked(tmp_path):
    """A function that runs one of the profile's commands over a stand-in for SLURM's; returns the process and the folder of what it keeps."""

    def ask(name: str, stand_in: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        slurm = tmp_path / "slurm"
        slurm.mkdir(exist_ok=True)
        (slurm / name).write_text(f"#!/bin/sh\n{stand_in}\n")
        (slurm / name).chmod(stat.S_IRWXU)
        path = f"{PROFILE / 'bin'}:{slurm}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "BITPLAN_SLURM_FOLDER": str(tmp_path / "kept")}
        made = subprocess.run(
            [name, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return made, tmp_path / "kept"

    return ask


AWAY = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"


@pytest.mark.parametrize("name", ["squeue", "sbatch"])
def test_a_controller_that_is_away_is_asked_again_and_the_answer_passed_on(asked, name):
    made, kept = asked(name, f'if [ -e once ]; then echo "$@"; else touch once; {AWAY}; fi', "--format", "%i|%T  x")
    assert (made.returncode, made.stdout, made.stderr) == (0, "--format %i|%T  x\n", "")
    assert f"by {name}, and answered" in (kept / "away.log").read_text()


@pytest.mark.parametrize("name", ["squeue", "sbatch", "scontrol"])
def test_another_error_is_passed_on_at_once(asked, name):
    made, kept = asked(name, "echo no such partition >&2; exit 3")
    assert (made.returncode, made.stderr) == (3, "no such partition\n")
    assert not (kept / "away.log").exists()
    assert (kept / "refused.log").exists() == (name == "sbatch"), "what is said of a group that cannot be submitted"


def test_the_controllers_configuration_is_known_while_it_is_away(asked):
    made, _ = asked("scontrol", "echo MinJobAge = 300 sec", "show", "config")
    again, _ = asked("scontrol", AWAY, "show", "config")
    assert made.stdout == again.stdout == "MinJobAge = 300 sec\n" and again.returncode == 0
    other, _ = asked("scontrol", AWAY, "show", "job", "1")
    assert other.returncode == 1


def test_without_slurm_the_command_says_where_to_run_it(tmp_path, command, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    made = command("slurm_jobs.py", ok=False)
    assert made.returncode == 2 and made.stderr.startswith("error [SLURM-NOT-HERE] squeue: ")
