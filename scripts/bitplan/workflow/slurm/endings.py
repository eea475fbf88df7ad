"""What happened to jobs that ended early, in one line each, with the logs that tell more.

Snakemake's own message is a block of ten lines and more, and with retries it is long gone when the run ends well.
"""

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitplan.workflow.slurm.controller import FOLDER

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
# Of a group Snakemake does not pass on the state, so that its log has to say it.
CANCELLED = "CANCELLED AT"
LAST = 65536  # bytes of a log that are looked at
REFUSALS = FOLDER / "refused.log"  # what sbatch said of jobs that it did not take, kept by profiles/slurm/bin


def _tail(path: Path) -> str:
    """Return the end of a file; nothing where it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _last_line(path: Path) -> str:
    """Return the last line of a file that holds more than blanks; nothing where there is none."""
    return next((line.strip() for line in reversed(_tail(path).splitlines()) if line.strip()), "")


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


def _shortened(names: Sequence[str], most: int = 2) -> str:
    """Return the first names and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def group_ending(
    group: str, steps: Sequence[Mapping[str, Any]], job: str | None, slurm_logs: Sequence[str], refusal: str = ""
) -> str:
    """Return the line for a job of several steps: the group and its files, SLURM's number, what happened, in which step, and where the logs are.

    `steps` are Snakemake's own facts of each (`rule_name`, `output`, `log`), `refusal` what sbatch said if there is no job.
    """
    files = _shortened(sorted(name for step in steps for name in step["output"][:1]))
    named = f"{group}, {len(steps)} step{'s' * (len(steps) > 1)} ({files})"
    if job is None:
        return f"{named}: could not be submitted: {refusal or 'sbatch gave no reason'}"
    told = _tail(Path(slurm_logs[-1])) if slurm_logs else ""
    failed = set(re.findall(r"Error in rule (\w+)", told))
    happened = "was cancelled" if CANCELLED in told else f"failed in {', '.join(sorted(failed))}" if failed else "ended"
    happened = next((words for sign, words in CAUSES if sign in told), happened)
    logs = [path for step in steps if step["rule_name"] in failed for path in step["log"]]
    present = [_from_here(path) for path in (*logs, *slurm_logs) if Path(path).exists()]
    return f"{named}: SLURM job {job} {happened}. Log: {', '.join(present) or 'none was written'}"


def _without_note(paths: Sequence[str]) -> list[str]:
    """Return paths without the note that Snakemake adds to a log."""
    return [re.sub(r" \(check log file.*\)$", "", path) for path in paths]


class JobEndings(logging.Handler):
    """Listens to Snakemake's log, says at once which job ended early and why, and keeps the lines for the end of the run."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take down the error of a job or of a group; other records are not ours, nor are the steps of a group, which follow it."""
        event = getattr(record, "event", None)
        if event == "group_error":
            self._add(self._of_group(record))
        elif event == "job_error" and not getattr(record, "indent", False):
            job = record.aux.get("external_jobid")
            self._add(ending(record.rule_name, record.output, job, record.rule_msg or "", _without_note(record.log)))

    def _of_group(self, record: logging.LogRecord) -> str:
        job, logs = getattr(record, "external_jobid", None), _without_note(record.aux_logs)
        refusal = "" if job else _last_line(REFUSALS)
        return group_ending(record.groupid, record.job_error_info, job, logs, refusal)

    def _add(self, line: str) -> None:
        self.lines.append(line)
        print(f"SLURM: {line}", file=sys.stderr, flush=True)

    def summary(self, succeeded: bool) -> str:
        """Return all lines under a heading; nothing where every job ended as it should."""
        if not self.lines:
            return ""
        jobs = f"{len(self.lines)} job{'s' * (len(self.lines) > 1)} ended early"
        heading = f"{jobs} and {'were' if len(self.lines) > 1 else 'was'} run again:" if succeeded else f"{jobs}:"
        return "\n".join([heading, *(f"  {line}" for line in self.lines)])
