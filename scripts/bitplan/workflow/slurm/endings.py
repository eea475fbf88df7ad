"""What happened to jobs that ended early, in one line each, with the logs that tell more.

Snakemake's own message is a block of ten lines and more, and with retries it is long gone when the run ends well.
"""

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

STATES = {
    "CANCELLED": "was cancelled",
    "TIMEOUT": "ran out of time",
    "DEADLINE": "ran out of time",
    "OUT_OF_MEMORY": "ran out of memory",
    "NODE_FAIL": "lost its node",
    "BOOT_FAIL": "lost its node",
    "PREEMPTED": "was preempted",
    "FAILED": "failed",
}
# What SLURM writes into a job's log, and what it means whatever the state is called: without control groups a job that is killed for
# its memory is CANCELLED.
CAUSES = (
    ("exceeded memory limit", "ran out of memory"),
    ("oom_kill", "ran out of memory"),
    ("oom-kill", "ran out of memory"),
    ("DUE TO TIME LIMIT", "ran out of time"),
    ("DUE TO NODE FAILURE", "lost its node"),
)
LAST = 65536  # bytes of a log that are looked at


def _tail(path: Path) -> str:
    """Return the end of a file; nothing where it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _from_here(path: str) -> str:
    """Return a path as seen from the working directory where it lies below it."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def what_happened(message: str, slurm_log: str) -> str:
    """Return an ending in words, from the plugin's message (it names SLURM's state) and the text of SLURM's own log."""
    found = next((words for sign, words in CAUSES if sign in slurm_log), None)
    state = re.search(r"status is: '(\w+)'", message)
    return found or STATES.get(
        state[1] if state else "", f"ended ({message.splitlines()[0] if message else 'no reason'})"
    )


def ending(rule: str, output: Sequence[str], job: str | None, message: str, logs: Sequence[str]) -> str:
    """Return the line for one job: rule, output, SLURM's number, what happened and where the logs are."""
    made = f" ({output[0]})" if output else ""
    if job is None:
        return f"{rule}{made}: could not be submitted: {' '.join(message.split('sbatch call')[0].split())}"
    present = [_from_here(path) for path in logs if Path(path).exists()]
    happened = what_happened(message, _tail(Path(logs[-1])) if logs else "")
    return f"{rule}{made}: SLURM job {job} {happened}. Log: {', '.join(present) or 'none was written'}"


class JobEndings(logging.Handler):
    """Listens to Snakemake's log, says at once which job ended early and why, and keeps the lines for the end of the run."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take down a job's error; other records are not ours."""
        if getattr(record, "event", None) != "job_error":
            return
        logs = [re.sub(r" \(check log file.*\)$", "", path) for path in record.log]
        job = record.aux.get("external_jobid")
        line = ending(record.rule_name, record.output, job, record.rule_msg or "", logs)
        self.lines.append(line)
        print(f"SLURM: {line}", file=sys.stderr, flush=True)

    def summary(self, succeeded: bool) -> str:
        """Return all lines under a heading; nothing where every job ended as it should."""
        if not self.lines:
            return ""
        jobs = f"{len(self.lines)} job{'s' * (len(self.lines) > 1)} ended early"
        heading = f"{jobs} and {'were' if len(self.lines) > 1 else 'was'} run again:" if succeeded else f"{jobs}:"
        return "\n".join([heading, *(f"  {line}" for line in self.lines)])
