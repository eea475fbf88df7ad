"""A cluster for each test module, so that modules can run side by side and a killed node is nobody else's."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing_programs
from tests.slurm.long_step import SCORES, TARGET, long_folder
from tests.slurm.runs import ClusterRun, run_locally

# Workers, and tests of another checkout, have clusters at the same time. Below the ports that the system gives out.
PORT = 12000 + 20 * (os.getpid() % 1000)


@pytest.fixture(scope="module")
def cluster():
    """A private cluster of three nodes; its logs are shown where a test fails."""
    if missing := missing_programs():
        pytest.skip(f"SLURM is not installed: {', '.join(missing)}")
    # Not pytest's folder: the path of a socket may have 107 characters.
    made = Cluster(Path(tempfile.mkdtemp(prefix="bitplan-slurm-")), port=PORT)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.root)


@pytest.fixture
def started():
    """A function that makes a run of the workflow, which is ended with the test."""
    runs = []

    def make(cluster: Cluster, folder: Path) -> ClusterRun:
        runs.append(ClusterRun(cluster, folder))
        return runs[-1]

    yield make
    for run in runs:
        run.stop()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The output of the step that is disturbed, and the scores that are made from it, of a run without a cluster."""
    folder = long_folder(tmp_path_factory.mktemp("undisturbed") / "run")
    run_locally(folder, TARGET, SCORES)
    return {name: (folder / name).read_bytes() for name in (TARGET, SCORES)}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder in which that step is to be made."""
    return long_folder(tmp_path / "run")
