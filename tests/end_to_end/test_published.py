"""The check at a paper's size on the bundled model, from a hub's stand-in: one command, resumed, a table. It runs the workflow, which takes its time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bitplan.reference.datasets import TEXT_SETS
from tests.conftest import ROOT
from tests.hub_stand_in import serving

PROGRAM = ROOT / "benchmarks" / "published.py"
WINDOWS = (
    "--length",
    "64",
    "--windows",
    "3",
    "--calibration-windows",
    "4",
    "--validation-windows",
    "4",
    "--draws",
    "2",
)
FLAGS = ("--sizes", "q4_k_m", "--threads", "1", "--cores", "2", "--memory-limit", "2GB", *WINDOWS)


def environment(url: str, home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}


def published(folder: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(PROGRAM), "--model", "org/tiny", "--folder", str(folder), *FLAGS, *more]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, env=environment(url, folder / "home"), cwd=folder
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, demo):
    """The folder of a run that was made with the model of the stand-in, and what it and the same command again said."""
    folder = tmp_path_factory.mktemp("published")
    texts = [word for use in ("calibration", "evaluation") for word in (f"--{use}", str(demo / f"{use}.txt"))]
    with serving(demo / "model") as hub:
        made = published(folder, hub.url, *texts)
        assert made.returncode == 0, (made.stdout + made.stderr)[-3000:]
        again = published(folder, hub.url, *texts)
    return folder, made, again


def test_the_table_has_each_recipe_and_optimal_plan_with_errors(run):
    _, made, _ = run
    rows = [line.split("|")[1:-1] for line in made.stdout.splitlines() if line.startswith("|")][2:]
    assert [row[0].strip() for row in rows] == [
        "Q4_K_M", "Q4_K_M, importance matrix", "optimal, nearest", "optimal, feedback",
    ]  # fmt: skip
    sizes = [int(row[1].replace(",", "")) for row in rows]
    assert max(sizes[2:]) <= sizes[0], "at most the recipe's size"
    for row in rows:
        kl, ppl = (cell.split("±") for cell in row[3:5])
        assert float(kl[0]) > 0 and float(kl[1]) > 0 and float(ppl[0]) > 1 and float(ppl[1]) > 0


def test_what_has_to_be_published_stands_beside_the_table(run):
    folder, made, _ = run
    assert (
        "Model: org/tiny, commit " in made.stdout and "3 scored" in made.stdout and "Versions: bitplan" in made.stdout
    )
    assert "Machine: " in made.stdout and str(folder) not in made.stdout, "no path of this machine"
    (kept,) = folder.glob("*/table.md")
    assert made.stdout.endswith(kept.read_text())


def test_the_same_command_again_has_nothing_to_do(run):
    _, made, again = run
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr
    table = [line for line in made.stdout.splitlines() if line.startswith(("|", "- "))]
    assert [line for line in again.stdout.splitlines() if line.startswith(("|", "- "))] == table


@pytest.mark.parametrize("split", ["train", "test"])
def test_wikitext_is_fetched_from_the_hub_and_joined(split, tmp_path):
    known = TEXT_SETS["wikitext2"]
    file = tmp_path / "hub" / known.file.replace("train", split)
    file.parent.mkdir(parents=True)
    pd.DataFrame({known.column: ["= Title =", "", "some words"]}).to_parquet(file)
    program = tmp_path / "text.py"
    program.write_text(
        f"import sys, json; sys.path.insert(0, {str(PROGRAM.parent)!r}); import published; print(json.dumps(published.wikitext({split!r})))"
    )
    with serving(tmp_path / "hub", f"datasets/{known.repository}") as hub:
        line = [sys.executable, str(program)]
        made = subprocess.run(
            line, capture_output=True, text=True, check=False, env=environment(hub.url, tmp_path / "home")
        )
    assert made.returncode == 0, made.stderr[-2000:]
    assert json.loads(made.stdout) == "= Title =\n\n\n\nsome words"
