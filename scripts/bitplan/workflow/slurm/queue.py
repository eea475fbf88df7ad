"""Jobs that runs of the workflow have in SLURM's queue. A Snakemake that was killed leaves its own there."""

import getpass
import logging
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bitplan.core.errors import user_error

PREFIX = "bitplan_"  # profiles/slurm gives this name to every job, in front of the run's own id
FIELDS = "%i|%T|%j|%k|%Z"  # job, state, name, comment, working directory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs: SLURM's number, its state, and `rule`: the rule with its wildcards."""

    number: str
    state: str
    rule: str

    def __str__(self) -> str:
        return f"{self.number} ({self.rule}, {self.state.lower()})"


def _slurm(*command: str) -> str:
    """Return what a command of SLURM prints. Raises `UserError` when it is not there or fails."""
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise user_error(
            "SLURM-NOT-HERE",
            command[0],
            "is not installed on this machine",
            "Run this on the machine where jobs are submitted",
        ) from None
    if made.returncode:
        raise user_error(
            "SLURM-FAILED",
            command[0],
            made.stderr.strip() or f"ended with {made.returncode}",
            "Check that the SLURM controller is running",
        )
    return made.stdout


def _rule(comment: str) -> str:
    """Return `layer_stats demo` of the plugin's comment `rule_layer_stats_wildcards_demo`."""
    return comment.removeprefix("rule_").replace("_wildcards_", " ")


def parse_queue(text: str, folder: Path) -> list[QueuedJob]:
    """Return the workflow's jobs in squeue's answer (lines of `FIELDS`) that work in `folder`."""
    rows = [line.split("|", 4) for line in text.splitlines() if line.count("|") >= 4]
    return [
        QueuedJob(number, state, _rule(comment))
        for number, state, name, comment, place in rows
        if name.startswith(PREFIX) and Path(place) == folder
    ]


def jobs_of(folder: Path) -> list[QueuedJob]:
    """Return the jobs that wait or run for runs in a folder. Raises `UserError` when SLURM does not answer."""
    answer = _slurm("squeue", "--noheader", f"--user={getpass.getuser()}", f"--format={FIELDS}")
    return parse_queue(answer, folder.resolve())


def await_jobs(folder: Path, every: float = 5.0) -> None:
    """Return when no job of a folder waits or runs; looks `every` so many seconds."""
    said: list[QueuedJob] = []
    while jobs := jobs_of(folder):
        if jobs != said:
            log.info("waiting for %s", ", ".join(map(str, jobs)))
            said = jobs
        time.sleep(every)


def cancel_jobs(folder: Path) -> None:
    """Cancel every job of a folder and return when all have ended."""
    if jobs := jobs_of(folder):
        log.info("cancelling %s", ", ".join(map(str, jobs)))
        _slurm("scancel", *(job.number for job in jobs))
        await_jobs(folder, every=1.0)


def refuse_running(folder: Path) -> None:
    """Raise `UserError` when jobs of an earlier run are in the queue: the same files would be made twice at once."""
    if jobs := jobs_of(folder):
        what = f"an earlier run still has jobs in the queue: {', '.join(map(str, jobs))}"
        hint = "Wait for them or cancel them: python scripts/slurm_jobs.py --wait, or --cancel"
        raise user_error("SLURM-STILL-RUNNING", "SLURM", what, hint)
