"""A controller of SLURM's that is away for a while: the workflow's own sbatch, squeue and scontrol ask it again (profiles/slurm/bin)."""

import os
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(".snakemake/slurm")  # what the commands keep, of the run that is going on
VARIABLE = "BITPLAN_SLURM_FOLDER"


def ask_patiently_(commands: Path) -> None:
    """Put a folder of commands in front of this process's PATH, and tell them where to keep what they know."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.environ[VARIABLE] = str(FOLDER.resolve())
    os.environ["PATH"] = f"{commands.resolve()}{os.pathsep}{os.environ['PATH']}"
    # Asked now, while it answers: it is kept for later.
    subprocess.run(["scontrol", "show", "config"], capture_output=True, check=False)


def times_away() -> str:
    """Return a line for each time at which the controller had to be asked again in this run; nothing where there was none."""
    told = FOLDER / "away.log"
    if os.environ.get(VARIABLE) != str(FOLDER.resolve()) or not told.exists():
        return ""
    return f"SLURM's controller was away ({told}):\n{told.read_text()}".rstrip()
