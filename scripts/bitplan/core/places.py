"""Where the workflow lies: in a checkout around `scripts/`, in an installed package inside the package's own folder."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "_workflow"


def workflow_folder() -> Path:
    """Return the folder of the Snakefile, rules/, scripts/, demo/ and config.yaml."""
    return INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1]


def scripts_folder() -> Path:
    """Return the folder of the commands."""
    return workflow_folder() / "scripts"
