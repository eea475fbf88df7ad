"""A hub's stand-in in the tests of models: what it serves, commands run against it, and what a folder of a download holds."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, SCRIPTS
from tests.hub_stand_in import Hub

TOKEN = "hf_aVerySecretToken"


WEIGHTS = "model.safetensors"


FETCHED = ["config.json", WEIGHTS, "tokenizer.json", "tokenizer.model"]


def environment(served: Hub, tmp_path: Path, **more: str) -> dict[str, str]:
    """The environment in which a command takes the stand-in for the hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    return {**kept, **own, "BITPLAN_HUB_PAUSE": "0.01", **more}


def run(name: str, *arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT, env=env)


def visible(folder: Path) -> list[str]:
    """What a reader of the folder could take for a file of a model."""
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith(".")) if folder.is_dir() else []


def assert_whole(folder: Path, served: Hub) -> None:
    assert visible(folder) == FETCHED
    assert all((folder / name).read_bytes() == served.files[name] for name in FETCHED)
    assert not list(folder.glob(".*.part"))


def holds(folder: Path, text: str) -> list[Path]:
    """The files below a folder that hold a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
