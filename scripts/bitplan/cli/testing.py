"""Running some of the project's tests from a command."""

import subprocess
import sys

from bitplan.core.places import workflow_folder


def run_tests(*paths: str) -> None:
    """Run test files in a process of its own and exit with its code."""
    made = subprocess.run([sys.executable, "-m", "pytest", "-n0", *paths], cwd=workflow_folder(), check=False)
    sys.exit(made.returncode)
