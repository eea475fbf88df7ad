"""The database of rounded candidates: what it holds, how large it is said to be, resumption, and the plans that take their codes from it."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import bitplan.rounding.candidates as candidates
from bitplan.core.errors import UserError
from bitplan.plans.layer_plan import LayerPlan
from bitplan.plans.plan import Plan, uniform_plan
from bitplan.plans.rounded import read_rounded_block
from bitplan.plans.smoothing import Smoothing
from bitplan.rounding.candidates import (
    check_room,
    database_bytes,
    fitting_candidates,
    round_candidates,
    take_candidates,
)
from bitplan.rounding.model import ModelRounding, round_plan
from bitplan.rounding.report import check_source
from tests.families import TEXT, make_family
from tests.unit.search.opened_models import Opened

PALETTE = [LayerPlan("q4_0"), LayerPlan("int3", group_size=32), LayerPlan("q5_k")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Opened(make_family("llama", tmp_path_factory.mktemp("llama") / "model"))


def written(case: Opened, folder, palette=None):
    how = (palette or PALETTE, case.reference.tokens, ModelRounding(), folder)
    return round_candidates(case.model, case.info, *how)


@pytest.fixture(scope="module")
def database(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("database") / "candidates"
    written(llama, folder)
    return folder


def test_every_layer_has_each_format_or_the_substitute_that_its_rows_fit(llama, database):
    stored = [name for path in sorted(database.glob("block-*")) for name in read_rounded_block(path)[0]]
    layers = llama.info.quantizable
    assert len(stored) == 3 * len(layers)
    assert {name.split("@")[1] for name in stored} == {"q4_0:32", "int3:32", "q5_1:32"}
    assert [choice.wq for choice in fitting_candidates(layers[0], [LayerPlan("q5_1"), LayerPlan("q5_k"), LayerPlan("fp16")])] == ["q5_1"]  # fmt: skip


def test_the_size_that_is_told_beforehand_is_that_of_the_codes_and_scales(llama, database):
    parts = [layer.quantized.nbytes for path in database.glob("block-*") for layer in read_rounded_block(path)[0].values()]  # fmt: skip
    assert database_bytes(llama.info, PALETTE) == sum(parts)


def test_a_disk_with_less_room_is_refused_before_anything_is_rounded(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10))
    check_room(tmp_path / "not" / "there", 10)
    with pytest.raises(UserError, match="CANDIDATES-NO-ROOM"):
        check_room(tmp_path / "not" / "there", 11)


def test_a_plan_of_one_block_takes_the_codes_that_its_own_rounding_gives(llama, database, tmp_path):
    plan = uniform_plan(llama.info, "q4_0")
    taken, rows = take_candidates(plan, llama.info, database, tmp_path / "taken")
    walked, _ = round_plan(llama.model, llama.info, plan, llama.reference.tokens, ModelRounding(), tmp_path / "walked")
    assert [row["layer"] for row in rows] == [layer.name for layer in llama.info.quantizable]
    # The inputs of the first layers are those of the full-precision model for both; later ones differ.
    first = [layer.name for layer in llama.info.quantizable if layer.block == 0 and layer.name.endswith(("q_proj", "k_proj"))]  # fmt: skip
    assert first and all(torch.equal(taken.rounded.weight(name), walked.rounded.weight(name)) for name in first)


def test_a_plan_takes_each_layer_in_its_own_format(llama, database, tmp_path):
    choices = {layer.name: PALETTE[i % 2] for i, layer in enumerate(llama.info.quantizable)}
    plan = Plan({layer.name: choices.get(layer.name, LayerPlan()) for layer in llama.info.layers})
    taken, _ = take_candidates(plan, llama.info, database, tmp_path / "taken")
    for name, choice in choices.items():
        layer = taken.rounded.layer(name)
        assert (layer.form, layer.group) == (choice.wq, 32)
    taken.rounded.check("plan", {name: (choice.wq, 32) for name, choice in choices.items()})


def test_an_interrupted_run_resumes_and_writes_the_same_bytes(llama, database, tmp_path, monkeypatch):
    rounding, calls = candidates.round_layer, []

    def stops(*args, **more):
        calls.append(args)
        if len(calls) > len(llama.info.quantizable) * 3 // 2:
            raise KeyboardInterrupt
        return rounding(*args, **more)

    monkeypatch.setattr(candidates, "round_layer", stops)
    with pytest.raises(KeyboardInterrupt):
        written(llama, tmp_path / "again")
    monkeypatch.setattr(candidates, "round_layer", rounding)
    assert len(written(llama, tmp_path / "again")) == 3 * len(llama.info.quantizable)
    for path in database.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def refused(case: Opened, plan: Plan, database, folder, code: str) -> str:
    with pytest.raises(UserError, match=code) as error:
        take_candidates(plan, case.info, database, folder)
    assert not folder.exists() and not folder.with_name(f"{folder.name}.partial").exists()
    return str(error.value)


def test_what_the_database_lacks_is_named(llama, database, tmp_path):
    said = refused(llama, uniform_plan(llama.info, "q8_0"), database, tmp_path / "r", "CANDIDATES-ABSENT")
    assert f"{llama.info.quantizable[0].name}@q8_0:32" in said


def test_plans_with_smoothing_and_databases_of_other_models_are_refused(llama, database, tmp_path):
    plan = uniform_plan(llama.info, "q4_0")
    refused(llama, replace(plan, smoothing=Smoothing(())), database, tmp_path / "r", "CANDIDATES-SMOOTHED")
    other = SimpleNamespace(info=replace(llama.info, fingerprint="other"))
    refused(other, plan, database, tmp_path / "r", "CANDIDATES-OTHER-MODEL")


def test_a_rounding_that_the_database_does_not_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match="CANDIDATES-OTHER-ROUNDING.*tuned.*--calibration"):
        check_source(tmp_path, "tuned")
    check_source(tmp_path, "feedback")
    check_source(None, "tuned")


def test_the_commands_write_a_database_and_take_a_plans_codes_from_it(command, llama, tmp_path):
    (tmp_path / "config.json").write_text('{"default": {"wq": "q4_0"}}')
    model, windows = tmp_path / "model", ("--sequences", 2, "--length", 32, "--threads", 1)
    make_family("llama", model)
    flags = ("--model", model, "--palette", "q4_0", "--calibration", TEXT, "--output", tmp_path / "d", *windows)
    told = command("round_candidates.py", *flags, "--dry-run")
    assert "GB for" in told.stdout and not (tmp_path / "d").exists()
    command("round_candidates.py", *flags)
    result = command("round_model.py", "--model", model, "--plan", tmp_path / "config.json", "--candidates", tmp_path / "d",
                     "--output", tmp_path / "r")  # fmt: skip
    assert f"{len(llama.info.quantizable)} layers rounded" in result.stdout
