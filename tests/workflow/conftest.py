"""A copy of the workflow whose every output is a stub that Snakemake takes for finished."""

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PARTS = ("Snakefile", "config.yaml", "rules", "scripts", "profiles", "envs", "docs")


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["snakemake", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def summary(folder: Path) -> list[dict[str, str]]:
    """The rows of Snakemake's own table of outputs, the date and the reason among them."""
    made = snakemake(folder, "--summary")
    assert made.returncode == 0, made.stderr
    return list(csv.DictReader(io.StringIO(made.stdout), delimiter="\t"))


def copy_workflow(folder: Path) -> Path:
    folder.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=ignored)
        else:
            shutil.copy(source, folder / part)
    model = folder / "demo" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"stub")
    for text in ("calibration", "evaluation"):
        (folder / "demo" / f"{text}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def workflow(tmp_path_factory) -> Path:
    """A fresh copy, nothing made yet."""
    return copy_workflow(tmp_path_factory.mktemp("fresh") / "a folder")


def finish(folder: Path) -> None:
    """Put a stub in the place of every output, and let Snakemake take it for made."""
    for row in summary(folder):
        path = folder / row["output_file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "compressed":
            path.mkdir()
            path = path / "stub"
        path.write_text("stub")
    made = snakemake(folder, "--touch", "--forceall", "--cores", "1", "--quiet", "all")
    assert made.returncode == 0, made.stderr


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A copy in which everything is made, in a folder with a space in its name."""
    folder = copy_workflow(tmp_path_factory.mktemp("finished") / "a folder")
    finish(folder)
    return folder
