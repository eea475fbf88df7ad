"""Configurations and plans of the genetic search as files: read back as written, and refused where they are none."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitplan.core.errors import UserError
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import LayerPlan, read_plan, uniform_plan, write_config, write_plan
from bitplan.plans.smoothing import SmoothGroup, Smoothing, smoothing_path
from bitplan.plans.torch_config import read_any_plan, read_pt, torch_content, write_pt
from bitplan.search.genetic.rows import sensitivity_of
from bitplan.search.genetic.run import (
    Target,
    genetic_plan,
)
from tests.unit.search.genetic_models import PALETTE, SETTINGS, activation_bits, formats, info, searched, table_rows

# --------------------------------------------------------------------------------------------------------------- files


def smoothing_for(model: ModelInfo) -> Smoothing:
    first, second = model.quantizable[0], model.quantizable[2]
    groups = (
        SmoothGroup((first.name,), 0.5 + torch.rand(256), "model.layers.0.input_layernorm", alpha=0.5),
        SmoothGroup((second.name,), 0.5 + torch.rand(256), alpha=0.4),
    )
    return Smoothing(groups)


@pytest.mark.parametrize("smooth", [False, True])
def test_every_kind_of_file_gives_the_plan_back(smooth, tmp_path):
    model = info()
    smoothing = smoothing_for(model) if smooth else None
    plan, _ = searched(Target(0.8), model, smoothing=smoothing)
    write_config(tmp_path / "config.json", plan, LayerPlan(), model)
    write_plan(tmp_path / "plan.json", plan, LayerPlan(), model)
    write_pt(tmp_path / "made.pt", plan, model)
    for name in ("config.json", "plan.json", "made.pt"):
        again = read_any_plan(tmp_path / name, model)
        assert formats(again, model) == formats(plan, model)
        assert (again.smoothing and again.smoothing.digest) == (smoothing and smoothing.digest)
    assert smoothing_path(tmp_path / "made.pt").exists() is smooth
    write_pt(tmp_path / "again" / "made.pt", plan, model)
    assert (tmp_path / "again/made.pt").read_bytes() == (tmp_path / "made.pt").read_bytes()


def test_a_palettes_files_give_the_plan_back(tmp_path):
    model = info()
    plan, _ = searched(Target(None, 8.0, PALETTE), model)
    write_config(tmp_path / "config.json", plan, LayerPlan(), model)
    assert formats(read_plan(tmp_path / "config.json", model), model) == formats(plan, model)


def test_the_configuration_of_torch_holds_four_keys_for_each_layer(tmp_path):
    model = info()
    plan, _ = searched(Target(0.8), model, smoothing=smoothing_for(model))
    write_pt(tmp_path / "made.pt", plan, model)
    content = torch.load(tmp_path / "made.pt", weights_only=True)
    assert list(content) == [layer.name for layer in model.quantizable]
    assert {tuple(entry) for entry in content.values()} == {("w_bits", "a_bits", "clip_ratio", "smooth_alpha")}
    assert [entry["a_bits"] for entry in content.values()] == activation_bits(plan, model)
    assert {entry["w_bits"] for entry in content.values()} == {4}
    assert [entry["smooth_alpha"] for entry in content.values()][:4] == [0.5, None, 0.4, None]


def test_scales_per_token_are_read_back_where_they_are_asked_for_and_told_when_written(tmp_path, caplog):
    model = info()
    table = sensitivity_of(table_rows(model, scope="token"))
    plan, _ = genetic_plan(table, None, model, Target(0.8), "token", SETTINGS)
    write_pt(tmp_path / "made.pt", plan, model)
    assert "has no group sizes or activation scopes" in caplog.text
    assert formats(read_pt(tmp_path / "made.pt", model, "token"), model) == formats(plan, model)


def test_factors_of_another_configuration_are_refused(tmp_path):
    model = info()
    plan, _ = searched(Target(0.8), model, smoothing=smoothing_for(model))
    write_pt(tmp_path / "made.pt", plan, model)
    content = torch.load(tmp_path / "made.pt", weights_only=True)
    content[model.quantizable[1].name]["smooth_alpha"] = 0.5
    torch.save(content, tmp_path / "made.pt")
    with pytest.raises(UserError, match="SMOOTHING-OTHER-PLAN"):
        read_pt(tmp_path / "made.pt", model)
    smaller = replace(smoothing_for(model).groups[0], scale=torch.ones(8))
    write_pt(tmp_path / "made.pt", replace(plan, smoothing=Smoothing((smaller,))), model)
    with pytest.raises(UserError, match="SMOOTHING-OTHER-PLAN"):
        read_pt(tmp_path / "made.pt", model)
    smoothing_path(tmp_path / "made.pt").unlink()
    with pytest.raises(UserError, match="SMOOTHING-INVALID"):
        read_pt(tmp_path / "made.pt", model)


class Evil:
    """What runs code when a pickle is read without care."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def entry(**changes) -> dict:
    return {"w_bits": 4, "a_bits": 8, "clip_ratio": 1.0, "smooth_alpha": None, **changes}


FIRST = "model.layers.0.self_attn.q_proj"
FOREIGN = {
    "a list": [1, 2],
    "a tensor": torch.ones(3),
    "nothing": {},
    "numbers": {FIRST: 4},
    "names that are numbers": {7: entry(), FIRST: entry()},
    "3 bits": {FIRST: entry(w_bits=3)},
    "16-bit words": {FIRST: entry(a_bits="8")},
    "a tensor for bits": {FIRST: entry(a_bits=torch.tensor([8, 8]))},
    "True for bits": {FIRST: entry(w_bits=True)},
    "no bits": {FIRST: {}},
    "clipped weights": {FIRST: entry(clip_ratio=0.9)},
    "an alpha that is a word": {FIRST: entry(smooth_alpha="half")},
    "an unknown layer": {"model.layers.99.q_proj": entry()},
    "a protected layer": {"lm_head": entry()},
}


def refused(path, model: ModelInfo) -> str:
    with pytest.raises(UserError) as caught:
        read_any_plan(path, model)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize("what", FOREIGN)
def test_a_configuration_that_is_none_is_refused_in_one_line(what, tmp_path):
    torch.save(FOREIGN[what], tmp_path / "x.pt")
    refused(tmp_path / "x.pt", info())


@pytest.mark.parametrize("plain", [False, True])
def test_code_in_a_configuration_is_refused_and_not_run(plain, tmp_path):
    if plain:
        (tmp_path / "x.pt").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    else:
        torch.save({FIRST: Evil(tmp_path / "ran")}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", info())
    assert not (tmp_path / "ran").exists()


def test_a_configuration_that_is_cut_short_or_changed_is_refused_or_read_whole(tmp_path):
    model = info(1)
    path, rng = tmp_path / "x.pt", np.random.default_rng(0)
    write_pt(path, uniform_plan(model, "int4", "int8_tensor", 128), model)
    whole, plain = (
        path.read_bytes(),
        pickle.dumps(torch_content(uniform_plan(model, "int4", "int8_tensor", 128), model), 2),
    )
    for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, model)
    path.write_bytes(b"Once upon a time")
    refused(path, model)
    for base in (whole, plain):
        for _ in range(150):
            broken = bytearray(base)
            for place in rng.integers(len(base), size=4):
                broken[place] = rng.integers(256)
            path.write_bytes(broken)
            try:
                read_any_plan(path, model)
            except UserError as error:
                assert "\n" not in str(error)
