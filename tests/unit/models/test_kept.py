"""Walks that are kept block by block: stopped anywhere, the next run begins at the next block and finds the same."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bitplan.core.errors import UserError
from bitplan.core.files import write_table
from bitplan.core.resume import NOT_SAVED, PartialResults, WalkProgress
from bitplan.reference.opening import prepare_model
from bitplan.reference.text import windows
from bitplan.sensitivity import passes
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.local_errors import (
    COLUMNS,
    Choice,
    SensitivitySettings,
    activation_choices,
    measure_sensitivity,
)
from bitplan.sensitivity.measure import measure_table
from bitplan.statistics.layer_stats import measure_layers, write_statistics
from tests.conftest import ROOT
from tests.families import TEXT, make_family

SETTINGS = SensitivitySettings((*activation_choices("tensor"), Choice("q8_0")), (0.5,), tokens=64)
ALWAYS = float("inf")


class Stopped(Exception):
    """What ends a run in these tests."""


@dataclass
class Stopping(WalkProgress):
    """A walk that is kept after every block, and ended after one of them."""

    after: int = -1

    def __post_init__(self) -> None:
        self.share = ALWAYS

    def keep(self, block, content) -> None:
        super().keep(block, content)
        if block == self.after:
            raise Stopped


@pytest.fixture(scope="module", params=["demo", "mixtral", "gpt2"])
def model(request, tmp_path_factory):
    """The bundled model of four blocks; experts, some of which no token reaches; a family that stores weights the other way round."""
    name = request.param
    folder = ROOT / "demo" / "model" if name == "demo" else make_family(name, tmp_path_factory.mktemp(name) / "model")
    return prepare_model(folder, "fp32", "cpu", 1)


@pytest.fixture
def partial(tmp_path) -> PartialResults:
    return PartialResults.open(tmp_path / "table.tsv", "this")


def tokens_of(model) -> torch.Tensor:
    return windows(model.checkpoint.folder, TEXT, 24, 3)


def statistics(model, folder: Path, walk: WalkProgress) -> dict[str, bytes]:
    rows, inputs, hidden = measure_layers(model.model, model.info, tokens_of(model), walk)
    write_statistics(folder / "s.tsv", folder / "s.safetensors", rows, inputs)
    return {path.name: path.read_bytes() for path in folder.glob("s.*")} | {"hidden": hidden.numpy().tobytes()}


def sensitivity(model, folder: Path, walk: WalkProgress) -> dict[str, bytes]:
    rows, smoothing = measure_sensitivity(model.model, model.info, tokens_of(model), SETTINGS, walk=walk)
    write_table(folder / "s.tsv", rows, COLUMNS)
    return {"table": (folder / "s.tsv").read_bytes(), "smoothing": smoothing.digest.encode()}


@pytest.mark.parametrize("measure", [statistics, sensitivity])
def test_a_walk_that_was_stopped_after_any_block_goes_on_there_and_finds_the_same(measure, model, partial, tmp_path):
    tokens, count = tokens_of(model).numel(), len(model.model.blocks)
    before = model.model.tokens_forwarded
    whole = measure(model, tmp_path, NOT_SAVED)
    cost = model.model.tokens_forwarded - before
    for after in range(1, count + 1):
        with pytest.raises(Stopped):
            measure(model, tmp_path, Stopping(partial, after=after))
        assert len([*partial.folder.glob("*.safetensors")]) == 1, "states of a block that is passed take up room"
        before = model.model.tokens_forwarded
        assert measure(model, tmp_path, WalkProgress(partial)) == whole
        assert model.model.tokens_forwarded - before == cost * (count - after) // count
        partial.remove()
    assert cost >= count * tokens


def test_a_pass_that_was_stopped_goes_on_after_the_last_block(model, tmp_path, monkeypatch):
    measure, tokens, count = MeasureSettings("all", fisher=True), tokens_of(model), len(model.model.blocks)
    whole = measure_table(model, tokens, SETTINGS, measure, tmp_path / "whole.tsv")
    rounds = 0
    while True:
        stops = iter([1 + rounds % count])
        monkeypatch.setattr(passes, "WalkProgress", lambda *args, stops=stops: Stopping(*args, after=next(stops, -1)))
        try:
            result = measure_table(model, tokens, SETTINGS, measure, tmp_path / "killed.tsv")
            break
        except Stopped:
            rounds += 1
    assert rounds >= count - 1
    assert (result.rows, result.smoothing.digest) == (whole.rows, whole.smoothing.digest)
    assert result.block_forwards == pytest.approx(whole.block_forwards)


def test_what_is_kept_is_exact(partial):
    states = torch.randn(3, 5)
    WalkProgress(partial).keep(2, lambda: ({"a|b": states}, {"third": 1 / 3, "none": float("nan")}))
    reached = WalkProgress(partial).reached()
    assert reached.block == 2 and torch.equal(reached.tensors["a|b"], states)
    assert reached.facts["third"] == 1 / 3 and reached.facts["none"] != reached.facts["none"]


def test_keeping_takes_a_small_share_of_the_time(partial):
    walk, saved = WalkProgress(partial, share=0.05), []

    def slowly():
        saved.append(1)
        time.sleep(0.05)
        return {}, {}

    for block in range(20):
        walk.keep(block, slowly)
    assert len(saved) == 1, "blocks that take no time were all kept"


def test_a_kill_while_states_are_written_leaves_those_before_them(partial):
    WalkProgress(partial).keep(1, lambda: ({"x": torch.ones(2)}, {}))
    (partial.folder / "walk-reached-0002.safetensors").write_bytes(b"the new ones, not yet told of")
    assert WalkProgress(partial).reached().block == 1
    Stopping(partial).keep(2, lambda: ({"x": torch.zeros(2)}, {}))
    reached = WalkProgress(partial).reached()
    assert reached.block == 2 and torch.equal(reached.tensors["x"], torch.zeros(2))


def test_a_disk_that_is_full_stops_the_keeping_and_not_the_walk(partial, caplog, monkeypatch):
    def full(self, name, tensors):
        raise OSError(28, "No space left on device")

    walk = WalkProgress(partial, share=1000.0)
    walk.keep(1, lambda: ({"x": torch.ones(2)}, {}))
    monkeypatch.setattr(PartialResults, "save_tensors", full)
    for block in (2, 3):
        walk.keep(block, lambda: ({"x": torch.zeros(2)}, {}))
    assert caplog.text.count("cannot be saved, continuing without: [Errno 28] No space left on device") == 1
    monkeypatch.undo()
    assert WalkProgress(partial).reached().block == 1


def test_what_was_half_removed_counts_for_nothing(partial, monkeypatch):
    partial.save_tensor("states-0000.safetensors", torch.ones(2))
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # killed at its first step
    partial.remove()
    monkeypatch.undo()
    assert partial.has("states-0000.safetensors") and not partial.has("of.json")
    assert not PartialResults.open(partial.folder.with_name("table.tsv"), "this").has("states-0000.safetensors")


def test_a_broken_file_is_named_with_the_way_out(partial):
    WalkProgress(partial).keep(1, lambda: ({"x": torch.ones(2)}, {}))
    (partial.folder / "walk-reached-0001.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="RESUME-BROKEN"):
        WalkProgress(partial).reached()


@pytest.mark.parametrize(("reason", "there"), [(None, False), (OSError(28, "No space left on device"), True)])
def test_a_mistake_of_the_user_removes_what_is_kept_and_a_full_disk_does_not(partial, reason, there):
    with pytest.raises(UserError), partial.remove_on_user_error():
        try:
            if reason:
                raise reason
        except OSError:
            raise UserError([]) from None
        raise UserError([])
    assert partial.folder.exists() == there
    assert not there or json.loads((partial.folder / "of.json").read_text())["digest"] == "this"
