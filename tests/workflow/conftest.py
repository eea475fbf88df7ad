"""A copy of the workflow whose every output is a stub that Snakemake takes for finished."""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.workflow.rerun_tables import CONFIG

PARTS = ("Snakefile", "config.yaml", "rules", "scripts", "profiles", "envs", "docs")


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["snakemake", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def summary(folder: Path, *targets: str) -> list[dict[str, str]]:
    """The rows of Snakemake's own table of outputs, the date and the reason among them."""
    made = snakemake(folder, "--summary", "--", *targets)
    assert made.returncode == 0, made.stderr
    return list(csv.DictReader(io.StringIO(made.stdout), delimiter="\t"))


def stub_text(word: str) -> str:
    """A text of one word that is long enough for any windows that tests ask for."""
    return f"{word} " * 50_000


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
    (model / "model.safetensors").write_bytes(bytes(2_000_000))
    for text in ("calibration", "evaluation"):
        (folder / "demo" / f"{text}.txt").write_text(stub_text(text))
    shutil.copy(ROOT / "demo" / "config.yaml", folder / "demo")
    return folder


@pytest.fixture(scope="session")
def workflow(tmp_path_factory) -> Path:
    """A fresh copy, nothing made yet."""
    return copy_workflow(tmp_path_factory.mktemp("fresh") / "a folder")


def write_stubs(folder: Path, outputs: Iterable[str], *targets: str) -> None:
    """Write something in the place of every output, and let Snakemake record it as made by the settings and the code of now."""
    for path in (folder / output for output in outputs):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name in ("compressed", "rounded", "model"):
            path.mkdir()
            path = path / "stub"
        path.write_text("stub")
    made = snakemake(folder, "--touch", "--forceall", "--cores", "1", "--quiet", "all", "--", *targets)
    assert made.returncode == 0, made.stderr


def finish(folder: Path) -> None:
    """Make a folder one in which everything of its `all` is made."""
    write_stubs(folder, (row["output_file"] for row in summary(folder)))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A copy in which everything is made, in a folder with a space in its name."""
    folder = copy_workflow(tmp_path_factory.mktemp("finished") / "a folder")
    finish(folder)
    return folder


class Finished:
    """A folder in which everything is made, and a process that says what Snakemake would make again in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, str(Path(__file__).with_name("pending_jobs.py")), str(folder)]
        self._process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str) -> dict[str, list[str]]:
        """Return the answer to `pending` or `everything`: lists of `jobs`, `pending` ones and their `outputs`."""
        print(question, file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="session")
def everything(tmp_path_factory) -> Iterator[Finished]:
    """The workflow of `rerun_tables.CONFIG`, finished: every method, two models, a study, tasks."""
    folder = copy_workflow(tmp_path_factory.mktemp("everything") / "a folder")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    shutil.copytree(folder / "demo" / "model", folder / "demo" / "copy")
    shutil.copytree(ROOT / "demo" / "tasks", folder / "demo" / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "demo" / "other.txt").write_text(stub_text("other"))
    (folder / "demo" / "own").mkdir()
    made = Finished(folder)
    write_stubs(folder, made.ask("everything")["outputs"], "all", "studies")
    yield made
    made.close()
