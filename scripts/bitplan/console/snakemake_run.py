"""Running the workflow in a project, with one line for each finished step."""

import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bitplan.console.project import Project, snakefile
from bitplan.console.typed_words import as_typed
from bitplan.core.errors import user_error
from bitplan.core.places import scripts_folder

QUIET = "--quiet"
DRY_RUN = "--dry-run"
PATIENCE = 60  # seconds in which an interrupted run has to end
# How the logger prints an error that says itself what is wrong and where.
CODED = "error ["
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
    asked = ((DRY_RUN, args.dry_run), (QUIET, args.quiet), ("--verbose", args.verbose))
    return [flag for flag, wanted in asked if wanted]


def relayed(lines: Iterable[str], typed: Mapping[str, str], first: str = "") -> bool:
    """Print lines to stderr as they come, without Snakemake's own noise and in the words that the user `typed`; `first` before the number of
    steps, if there are any. Returns whether one is an error that says itself what is wrong."""
    coded = False
    for line in lines:
        if STEPS.fullmatch(line) and first:
            print(first, file=sys.stderr)
            first = ""
        if not line.startswith(NOISE):
            print(as_typed(line, typed), end="", file=sys.stderr, flush=True)
        coded |= line.startswith(CODED)
    return coded


def _await_(process: subprocess.Popen) -> None:
    """Give an interrupted run, which Snakemake ends itself, some time for that."""
    try:
        process.wait(PATIENCE)
    finally:
        process.kill()


def run_workflow(
    project: Project, targets: Sequence[Path], cores: int, more: Sequence[str] = (), first: str = ""
) -> None:
    """Make some files of a project. Raises `UserError` where a step failed for a reason that the printed lines do not say; where they do,
    `SystemExit` with 2. The steps that are finished are kept.

    `first` is printed before the first step, and not where nothing is to be done. With --quiet, Snakemake's own lines are not printed;
    warnings, errors and the tables that a run ends with are.
    """
    # What steps print besides, the estimate, goes to stdout.
    stdout = subprocess.DEVNULL if QUIET in more else None
    line = command(project, targets, cores, more)
    typed = {**project.typed, "log: logs": f"log: {os.path.relpath(project.folder / 'logs')}"}
    run = subprocess.Popen(line, env=environment(os.environ), text=True, stdout=stdout, stderr=subprocess.PIPE)
    with run as process:
        try:
            coded = relayed(process.stderr, typed, first)
        except KeyboardInterrupt:
            _await_(process)
            raise
    if run.returncode and coded:
        sys.exit(2)
    if status := run.returncode:
        what = f"the workflow stopped with exit code {status}; the lines above say which step failed"
        raise user_error(
            "WORKFLOW-FAILED",
            str(project.folder),
            what,
            "Fix the cause and run the same command again: finished steps are kept",
        )
    if DRY_RUN in more:
        print("A dry run: none of these steps was run", file=sys.stderr)
