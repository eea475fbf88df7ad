"""NaN and Inf in weights: checked once when a model is described, again only in files that changed since."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitplan.core.errors import UserError
from bitplan.models import finite
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.finite import check_read, finite_files

NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


def described(folder) -> Checkpoint:
    """The checkpoint of a model.json, as later steps open it."""
    path = folder.parent / "model.json"
    path.write_text(json.dumps({"path": str(folder), "finite": finite_files(Checkpoint.open(folder))}))
    return Checkpoint.open(path)


def with_value(folder, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME][3, 5] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def checked(monkeypatch, checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> list[str]:
    """The tensors that are looked at when one is read."""
    looked_at = []
    monkeypatch.setattr(finite, "check_finite", lambda tensors, source: looked_at.extend(tensors))
    check_read(checkpoint.read([NAME], dtype), checkpoint)
    return looked_at


def test_what_was_checked_when_it_was_described_is_not_checked_again(folder, monkeypatch):
    assert checked(monkeypatch, described(folder)) == []
    assert checked(monkeypatch, Checkpoint.open(folder)) == [NAME]


def test_a_file_that_changed_since_is_checked_again(folder, monkeypatch):
    checkpoint = described(folder)
    with_value(folder, float("nan"))
    with pytest.raises(UserError, match="MODEL-NOT-FINITE"):
        check_read(checkpoint.read([NAME]), checkpoint)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert checked(monkeypatch, checkpoint) == [NAME]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_model_with_such_a_weight_is_refused_when_it_is_described(folder, value):
    with_value(folder, value)
    with pytest.raises(UserError, match=f"MODEL-NOT-FINITE.*{NAME}"):
        finite_files(Checkpoint.open(folder))


def test_what_may_overflow_in_the_type_it_is_read_in_is_checked_in_any_case(folder, monkeypatch):
    with_value(folder, 1e6)
    checkpoint = described(folder)
    with pytest.raises(UserError, match="MODEL-NOT-FINITE"):
        check_read(checkpoint.read([NAME], torch.float16), checkpoint)
    assert checked(monkeypatch, checkpoint, torch.float32) == []


def test_a_model_json_without_the_note_or_with_a_broken_one_is_checked(folder, monkeypatch):
    described(folder)
    for note in ({}, {"finite": 3}, {"finite": {"model.safetensors": "x"}}):
        (folder.parent / "model.json").write_text(json.dumps({"path": str(folder), **note}))
        assert checked(monkeypatch, Checkpoint.open(folder.parent / "model.json")) == [NAME]
