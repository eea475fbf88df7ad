"""What model.json records of a model's loading is used while it holds, and never after."""

import json
import shutil
import subprocess
import sys

import pytest

from bitplan.core.files import read_json, write_json
from bitplan.models import loading
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.recorded_loading import loading_record
from tests.conftest import SCRIPTS
from tests.families import FAMILIES, make_family


def described(folder, place):
    """The path of a model.json with the folder and its loading alone."""
    checkpoint = Checkpoint.open(folder)
    record = loading_record(checkpoint.folder, checkpoint.stored, checkpoint.loading)
    write_json(place, {"path": str(folder), "loading": record})
    return place


@pytest.mark.parametrize("name", FAMILIES)
def test_the_record_is_the_loading(name, tmp_path):
    folder = make_family(name, tmp_path / "model")
    place, fresh = described(folder, tmp_path / "model.json"), Checkpoint.open(folder).loading
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(loading, "read_loading")
        assert Checkpoint.open(place).loading == fresh


def change_config(folder):
    path = folder / "config.json"
    path.write_text(path.read_text() + " ")


def change_version(folder):
    path = folder.parent / "model.json"
    write_json(path, {**read_json(path), "loading": {**read_json(path)["loading"], "key": "of another transformers"}})


def change_fields(folder):
    path = folder.parent / "model.json"
    record = read_json(path)["loading"]
    write_json(path, {**read_json(path), "loading": {key: value for key, value in record.items() if key != "needed"}})


@pytest.mark.parametrize("change", [change_config, change_version, change_fields])
def test_transformers_is_asked_again_after_a_change(change, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    place = described(folder, tmp_path / "model.json")
    change(folder)

    def ask(*_):
        raise AssertionError("transformers was asked")

    monkeypatch.setattr(loading, "read_loading", ask)
    with pytest.raises(AssertionError, match="asked"):
        Checkpoint.open(place).loading  # noqa: B018


def test_a_saved_text_is_opened_for_a_file_without_transformers(tiny, tmp_path):
    place, saved = tmp_path / "model.json", tmp_path / "text.safetensors"
    text = ("--text", SCRIPTS.parent / "demo" / "evaluation.txt", "--length", "32", "--sequences", "1")
    commands = [
        ["describe_model.py", "--model", tiny, "--output", place],
        ["teacher.py", "--model", place, *text, "--output", saved],
    ]
    for command in commands:
        subprocess.run([sys.executable, SCRIPTS / command[0], *command[1:]], check=True, capture_output=True)
    code = (
        "import sys, json; from pathlib import Path; from bitplan.reference.opening import open_reference, prepare_model;"
        f"open_reference(Path({str(saved)!r}), prepare_model(Path({str(place)!r}), 'fp32', 'cpu', 1), 32, 1);"
        "print(json.dumps('transformers' in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env={"PYTHONPATH": str(SCRIPTS)}
    )
    assert json.loads(ran.stdout) is False
