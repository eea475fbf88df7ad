"""A step that takes long enough to be hit in the middle: the evaluation of a long text."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.runs import make_folder, run_locally

SETTINGS = {
    "models": {"demo": {"path": "demo/model", "calibration": "demo/calibration.txt", "evaluation": "long.txt"}},
    "plans": {"drawn": {"method": "random", "mxfp4_ratio": 0.5, "bf16_ratio": 0.1, "seed": 1}},
    "evaluation": {"length": 512, "sequences": None},
}
TARGET = "results/demo/evaluation.safetensors"
SCORES = "results/demo/plans/drawn/perplexity.json"
LOG = "logs/demo/evaluation.log"


def long_folder(folder: Path) -> Path:
    """Return a folder in which nothing is made yet."""
    return make_folder(folder, SETTINGS, 2 * (ROOT / "demo" / "evaluation.txt").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The step's output, and the scores that are made from it, of a run without a cluster."""
    folder = long_folder(tmp_path_factory.mktemp("undisturbed") / "run")
    run_locally(folder, TARGET, SCORES)
    return {name: (folder / name).read_bytes() for name in (TARGET, SCORES)}


@pytest.fixture
def folder(tmp_path) -> Path:
    return long_folder(tmp_path / "run")
