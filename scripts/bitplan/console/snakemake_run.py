"""Running the workflow in a project, with one line for each finished step."""

import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bitplan.console.project import Project, snakefile
from bitplan.core.errors import user_error
from bitplan.core.places import scripts_folder

QUIET = "--quiet"
DRY_RUN = "--dry-run"
PATIENCE = 60  # seconds in which an interrupted run has to end
# What the logger says before the first step, and what Snakemake prints before any logger is there.
STEPS = re.compile(r"\d+ steps\n")
NOISE = ("Using workflow specific profile", "Using profile")


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run: rules call `python`, which has to be this interpreter, and Snakemake has to find the logger."""
    paths = [str(scripts_folder()), *filter(None, [given.get("PYTHONPATH")])]
    programs = [str(Path(sys.executable).parent), *filter(None, [given.get("PATH")])]
    return {**given, "PYTHONPATH": os.pathsep.join(paths), "PATH": os.pathsep.join(programs)}


def command(project: Project, targets: Sequence[Path], cores: int, more: Sequence[str] = ()) -> list[str]:
    """Return the command line of a run that makes some files of a project."""
    names = [str(path.relative_to(project.folder)) for path in targets]
    return [
        *(sys.executable, "-m", "snakemake", *names, "--snakefile", str(snakefile())),
        *("--directory", str(project.folder), "--configfile", str(project.folder / "config.yaml")),
        *("--cores", str(cores), "--logger", "steps", *more),
    ]


def flags_of(args: Namespace) -> list[str]:
    """Return the flags of Snakemake that the flags of a command ask for."""
    return [flag for flag, wanted in ((DRY_RUN, args.dry_run), (QUIET, args.quiet)) if wanted]


def _told(lines: Iterable[str], first: str) -> None:
    """Print lines to stderr as they come, without Snakemake's own noise; `first` before the number of steps, if there are any."""
    for line in lines:
        if STEPS.fullmatch(line) and first:
            print(first, file=sys.stderr)
            first = ""
        if not line.startswith(NOISE):
            print(line, end="", file=sys.stderr, flush=True)


def _ended(process: subprocess.Popen, first: str) -> int:
    """Return the exit code of a run whose lines are printed. One that is interrupted, as Snakemake is too, is awaited for a while."""
    try:
        _told(process.stderr, first)
    except KeyboardInterrupt:
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
        raise
    return process.wait()


def run_workflow(
    project: Project, targets: Sequence[Path], cores: int, more: Sequence[str] = (), first: str = ""
) -> None:
    """Make some files of a project. Raises `UserError` where a step failed; the steps that are finished are kept.

    `first` is printed before the first step, and not where nothing is to be done. With --quiet, Snakemake's own lines are not printed;
    warnings, errors and the tables that a run ends with are.
    """
    # What steps print besides, the estimate, goes to stdout.
    stdout = subprocess.DEVNULL if QUIET in more else None
    line = command(project, targets, cores, more)
    run = subprocess.Popen(line, env=environment(os.environ), text=True, stdout=stdout, stderr=subprocess.PIPE)
    with run as process:
        status = _ended(process, first)
    if status:
        what = f"the workflow stopped with exit code {status}; the lines above say which step failed"
        raise user_error(
            "WORKFLOW-FAILED",
            str(project.folder),
            what,
            "Fix the cause and run the same command again: finished steps are kept",
        )
    if DRY_RUN in more:
        print("A dry run: none of these steps was run", file=sys.stderr)
