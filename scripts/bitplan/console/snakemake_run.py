"""Running the workflow in a project, with one line for each finished step."""

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitplan.console.project import Project, snakefile
from bitplan.core.errors import user_error
from bitplan.core.places import scripts_folder

QUIET = "--quiet"
# What Snakemake prints before any logger is there.
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
    return [flag for flag, wanted in (("--dry-run", args.dry_run), (QUIET, args.quiet)) if wanted]


def _without_noise(text: str) -> list[str]:
    return [line for line in text.splitlines(keepends=True) if not line.startswith(NOISE)]


def run_workflow(project: Project, targets: Sequence[Path], cores: int, more: Sequence[str] = ()) -> None:
    """Make some files of a project. Raises `UserError` where a step failed; the steps that are finished are kept.

    With --quiet, Snakemake's own lines are not printed; warnings, errors and the tables that a run ends with are, when it has ended.
    """
    line = command(project, targets, cores, more)
    # What steps print besides, the estimate, goes to stdout.
    quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} if QUIET in more else {}
    done = subprocess.run(line, env=environment(os.environ), text=True, check=False, **quietly)
    print("".join(_without_noise(done.stderr or "")), end="", file=sys.stderr)
    if status := done.returncode:
        what = f"the workflow stopped with exit code {status}; the lines above say which step failed"
        raise user_error(
            "WORKFLOW-FAILED",
            str(project.folder),
            what,
            "Fix the cause and run the same command again: finished steps are kept",
        )
