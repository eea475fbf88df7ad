"""The genetic search on a model: importance, targets that hold, the exact optimum beside it, and what is written of it."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitplan.core.errors import UserError
from bitplan.core.files import write_table
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.plan import LayerPlan, Plan, average_bits, read_plan, uniform_plan, write_config, write_plan
from bitplan.plans.smoothing import SmoothGroup, Smoothing, smoothing_path
from bitplan.plans.torch_config import read_any_plan, read_pt, torch_content, write_pt
from bitplan.search.genetic.algorithm import GeneticSettings
from bitplan.search.genetic.rows import read_sensitivity, sensitivity_of
from bitplan.search.genetic.run import (
    Target,
    compression_of,
    find,
    genetic_plan,
    importance_of,
    print_result,
)
from bitplan.search.knapsack.choices import total_damage
from bitplan.search.knapsack.exact import optimal
from bitplan.sensitivity.local_errors import COLUMNS

PALETTE = ("q2_k", "q4_k", "q6_k", "q8_0")
SETTINGS = GeneticSettings(seed=5)


def info(blocks: int = 5) -> ModelInfo:
    """A model of four layers a block and a protected output; the embedding has as many parameters as the output."""
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    shapes = ((256, 256), (256, 256), (512, 256), (256, 512))
    layers = tuple(
        Layer(f"model.layers.{b}.{name}", name.split(".")[1], shape, b, "", False)
        for b in range(blocks)
        for name, shape in zip(names, shapes, strict=True)
    )
    output = Layer("lm_head", "lm_head", (1000, 256), -1, "", True)
    parameters = sum(layer.params for layer in layers) + 2 * 256_000
    return ModelInfo("here", "f" * 64, "A", "llama", parameters, (*layers, output))


def table_rows(model: ModelInfo, seed: int = 0, scope: str = "tensor", palette=PALETTE) -> list[dict]:
    rng, rows = np.random.default_rng(seed), []
    for layer in model.quantizable:
        size, ratio = rng.lognormal(), 1 + 4 * rng.random()
        candidates = [("int4", f"int8_{scope}", size), ("int4", f"int4_{scope}", size * ratio)]
        candidates += [(form, "bf16", size / 4**k) for k, form in enumerate(palette)]
        for form, inputs, mse in candidates:
            plan = Plan({layer.name: LayerPlan(form)})
            stored = average_bits(plan, replace(model, parameters=layer.params, layers=(layer,))).avg_bits
            row = {"layer": layer.name, "category": layer.category, "params": layer.params, "format": form}
            figures = {"mse": mse, "relative_mse": mse / 3, "weighted_error": mse / 5, "kld": None}
            rows.append({**row, "inputs": inputs, "bytes": math.ceil(stored * layer.params / 8), **figures})
    return rows


def searched(target: Target, model: ModelInfo | None = None, settings=SETTINGS, smoothing=None, seed=0, **more):
    model = model or info()
    return genetic_plan(sensitivity_of(table_rows(model, seed)), smoothing, model, target, "tensor", settings, **more)


def activation_bits(plan: Plan, model: ModelInfo) -> list[int]:
    return [{"int4_tensor": 4, "int8_tensor": 8}[plan.of(layer.name).aq] for layer in model.quantizable]


def formats(plan: Plan, model: ModelInfo) -> list[tuple]:
    return [(plan.of(x.name).wq, plan.of(x.name).aq, plan.of(x.name).group_size) for x in model.layers]


# ---------------------------------------------------------------------------------------------------------- importance


def test_importance_worked_out_by_hand():
    # 16 layers: the first and last 7 count one and a half times, the two between them once.
    ratios = [2.0] * 7 + [1.0, 7.0] + [2.0] * 7
    low, edge, high = math.log(2), math.log(4), math.log(8)
    made = importance_of(ratios)
    assert made[7] == 0.5 and made[8] == 2.0
    assert made[[0, 6, 9, 15]] == pytest.approx(0.5 + 1.5 * (edge - low) / (high - low)) == pytest.approx(1.25)


def test_importance_of_layers_that_are_all_alike_is_the_least():
    assert importance_of([2.0] * 10).tolist() == [0.5] * 10


def test_an_infinite_ratio_counts_most_and_leaves_the_others_finite():
    made = importance_of([1.0, 2.0, math.inf])
    assert made[2] == 2.0 and made[0] == 0.5 and np.isfinite(made).all()


def test_the_fitness_is_the_weighted_sum_of_the_errors():
    model = info()
    plan, found = searched(Target(0.8))
    rows = {(r["layer"], r["inputs"]): r["mse"] for r in table_rows(model)}
    names = [layer.name for layer in model.quantizable]
    ratios = [rows[name, "int4_tensor"] / rows[name, "int8_tensor"] for name in names]
    wanted = sum(rows[n, plan.of(n).aq] * w for n, w in zip(names, importance_of(ratios), strict=True))
    assert plan.summary["fitness"] == pytest.approx(-wanted) and found.ratios == pytest.approx(ratios)


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("target", [2 / 3, 0.7, 0.72345, 0.75, 0.85, 0.99, 1.0])
@pytest.mark.parametrize("solution", ["genetic", "exact"])
def test_the_compression_never_exceeds_its_target(target, solution):
    model = info()
    plan, _ = searched(Target(target), use_exact=solution == "exact")
    bits = activation_bits(plan, model)
    made = (4 + sum(bits) / len(bits)) / 12
    assert made <= target + 1e-9 and made == pytest.approx(compression_of(plan, model)) == plan.summary["compression"]
    # One layer more in A8 would be too much: the room is used, as A8 is better everywhere.
    assert made + 4 / 12 / len(bits) > target or made == 1.0
    assert {plan.of(layer.name).wq for layer in model.quantizable} == {"int4"} and not plan.of("lm_head").quantized


@pytest.mark.parametrize("target", [0.5, 0.6666])
def test_a_compression_out_of_reach_is_refused_with_the_range(target):
    with pytest.raises(UserError, match=r"--target_compression: no choice is within .* reach 0.6667 to 1.0000"):
        Target(target).check()
    with pytest.raises(UserError, match="0.6667 to 1"):
        searched(Target(target))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target", [6.5, 7.0, 8.123, 10.0])
def test_average_bits_hold_their_target_by_an_independent_count(target, seed):
    model = info()
    plan, _ = searched(Target(None, target, PALETTE), model, seed=seed)
    assert average_bits(plan, model).avg_bits <= target + 1e-9
    assert plan.summary["avg_bits"] == average_bits(plan, model).avg_bits and plan.summary["target_missed_by"] == 0
    assert {plan.of(x.name).wq for x in model.quantizable} <= set(PALETTE) and plan.smoothing is None
    assert {plan.of(x.name).aq for x in model.layers} == {"bf16"}


def test_average_bits_out_of_reach_are_refused_with_the_range():
    model = info()
    low, high = (average_bits(uniform_plan(model, form), model).avg_bits for form in ("q2_k", "q8_0"))
    with pytest.raises(UserError, match=rf"reach {math.ceil(1e4 * low) / 1e4:.4f} to {high:.4f}"):
        searched(Target(None, low - 0.01, PALETTE), model)
    plan, _ = searched(Target(None, math.ceil(1e4 * low) / 1e4, PALETTE), model)
    assert average_bits(plan, model).avg_bits == pytest.approx(low)


@pytest.mark.parametrize("target", [Target(0.75, None, PALETTE), Target(0.75, 8.0)])
def test_a_palette_and_average_bits_go_together(target):
    with pytest.raises(UserError, match="go together"):
        target.check()


# ------------------------------------------------------------------------------------------------- the exact solution


@pytest.mark.parametrize("target", [Target(0.75), Target(0.9), Target(None, 8.0, PALETTE)])
@pytest.mark.parametrize("seed", range(3))
def test_the_exact_choice_is_never_worse_than_the_genetic_one(target, seed):
    plan, found = searched(target, settings=GeneticSettings(seed=seed, generations=6), seed=seed)
    assert found.exact.damage <= found.result.damage * (1 + 1e-9) and plan.summary["gap"] >= 0
    assert plan.summary["gap"] == pytest.approx(found.result.damage / found.exact.damage - 1, abs=1e-9)


@pytest.mark.parametrize("target", [Target(0.8), Target(None, 8.0, PALETTE)])
def test_the_exact_solution_gives_the_exact_choice(target):
    model = info()
    plan, found = searched(target, model, GeneticSettings(generations=1, population=3), use_exact=True)
    budget = 12 * 0.8 * 20 - 4 * 20 if target.avg_bits is None else None
    if budget is not None:
        gain = found.choices.damage[:, 0] - found.choices.damage[:, 1]
        best = set(np.argsort(-gain)[: int(budget / 4 + 1e-9) - 20])
        assert activation_bits(plan, model) == [8 if i in best else 4 for i in range(20)]
        assert optimal(found.choices, budget).damage == pytest.approx(found.exact.damage)
    names = ("A4", "A8") if target.avg_bits is None else PALETTE
    chosen = [{"int4_tensor": "A4", "int8_tensor": "A8"}.get(aq, wq) for wq, aq, _ in formats(plan, model)[:-1]]
    assert total_damage(found.choices, np.array([names.index(c) for c in chosen])) == found.exact.damage
    assert plan.summary["solution"] == "exact" and plan.summary["exact_fitness"] == -found.exact.damage


def test_the_same_seed_gives_the_same_plan():
    first, again = (searched(Target(0.8))[0] for _ in range(2))
    assert first == again and dict(first.summary) == dict(again.summary)


# ------------------------------------------------------------------------------------------------------------- tables


def test_a_table_from_a_file_gives_the_plan_of_the_rows_in_memory(tmp_path):
    model = info()
    rows = table_rows(model)
    write_table(tmp_path / "s.tsv", rows, COLUMNS)
    table = read_sensitivity(tmp_path / "s.tsv")
    plan, _ = genetic_plan(table, None, model, Target(0.8), "tensor", SETTINGS)
    assert formats(plan, model) == formats(searched(Target(0.8), model)[0], model)


def test_layers_that_no_token_reached_count_nothing_from_memory_and_from_a_file(tmp_path):
    model, plans = info(), []
    rows = table_rows(model)
    for row in rows[: 2 * (2 + len(PALETTE))]:
        row.update(mse=math.nan, relative_mse=math.nan, weighted_error=math.nan, tokens=0)
    write_table(tmp_path / "s.tsv", rows, COLUMNS)
    for table in (sensitivity_of(rows), read_sensitivity(tmp_path / "s.tsv")):
        for target in (Target(0.8), Target(None, 8.0, PALETTE)):
            plan, found = genetic_plan(table, None, model, target, "tensor", SETTINGS, use_exact=True)
            plans.append(formats(plan, model))
            assert found.ratios[:2] == (1.0, 1.0) and np.isfinite(found.exact.damage)
    assert plans[:2] == plans[2:] and plans[0][0][1] == plans[0][1][1] == "int4_tensor"


def test_the_plan_has_the_groups_that_the_table_was_measured_with():
    model = info()
    rows = [{**row, "group_size": 64 if row["inputs"] != "bf16" else None} for row in table_rows(model)]
    plan, _ = genetic_plan(sensitivity_of(rows), None, model, Target(0.8), "tensor", SETTINGS)
    assert {plan.of(layer.name).group_size for layer in model.quantizable} == {64}


@pytest.mark.parametrize(
    ("change", "metric", "message"),
    [
        ({"mse": "high"}, "mse", "mse 'high' is no number"),
        ({"mse": "nan"}, "mse", "mse 'nan' is no number"),
        ({"mse": "inf"}, "mse", "mse 'inf' is no number"),
        ({"mse": -1.0}, "mse", "mse -1.0 is no number of 0 or more"),
        ({"bytes": ""}, "mse", "has no bytes"),
        ({"bytes": "0"}, "mse", "has no bytes"),
        ({"inputs": "bf16"}, "mse", "has two rows for model.layers.0.self_attn.q_proj in int4 with bf16"),
        ({"mse": ""}, "mse", "mse is empty in int4 with int4_tensor. Make it again .* no token reached"),
        ({"mse": None, "tokens": 5}, "mse", "mse is empty"),
        ({"mse": "", "tokens": "-"}, "mse", "mse is empty"),
        ({"layer": "model.layers.9.self_attn.q_proj"}, "mse", "has no row for model.layers.0.self_attn.q_proj in"),
        ({"group_size": "some"}, "mse", "group_size 'some' is no group"),
        ({}, "kld", "kld: has no figures"),
    ],
)
def test_a_table_that_cannot_be_searched_is_refused(change, metric, message):
    model = info()
    rows = table_rows(model)
    for row in rows[: 2 + len(PALETTE)]:
        row.update(change)
    target = Target(None, 8.0, PALETTE, metric) if "bytes" in change else Target(0.8, metric=metric)
    with pytest.raises(UserError, match=message):
        find(sensitivity_of(rows, "s.tsv"), model, target, "tensor", SETTINGS)


def test_with_auto_the_labels_decide_as_the_documents_table_says(capsys):
    model, target = info(), Target(None)
    plan, found = searched(target, model)
    wanted = [8 if label == "high" else 4 for label in found.labels]
    assert activation_bits(plan, model) == wanted and {4, 8} == set(wanted)
    summary = plan.summary
    assert summary["target_compression"] == "auto" and summary["solution"] == "labels"
    assert summary["compression"] == pytest.approx((4 + np.mean(wanted)) / 12)
    # The genetic and the exact search have the labels' own size: neither of them does worse.
    assert summary["labels_fitness"] <= summary["fitness"] <= summary["exact_fitness"]
    print_result(plan, found, model)
    assert "the labels decide" in capsys.readouterr().out


def test_with_a_number_the_compression_decides_and_the_printout_says_so(capsys):
    model = info()
    plan, found = searched(Target(0.75), model)
    print_result(plan, found, model)
    bits = activation_bits(plan, model)
    high = sum(label == "high" and bit == 4 for label, bit in zip(found.labels, bits, strict=True))
    low = sum(label == "low" and bit == 8 for label, bit in zip(found.labels, bits, strict=True))
    said = capsys.readouterr().out
    assert f"It decides, not the labels: {high} high layers have A4, {low} low ones A8" in said


@pytest.mark.parametrize("ratio", [1.0, 100.0])
def test_labels_that_are_all_alike_give_one_width(ratio):
    model = info()
    rows = table_rows(model)
    for row in rows:
        if row["inputs"] != "bf16":
            row["mse"] = ratio if row["inputs"].startswith("int4") else 1.0
    plan, _ = genetic_plan(sensitivity_of(rows), None, model, Target(None), "tensor", SETTINGS)
    assert set(activation_bits(plan, model)) == {8 if ratio > 2.5 else 4}


def test_a_table_without_a_row_is_refused():
    model = info()
    rows = table_rows(model)[1:]
    with pytest.raises(
        UserError, match=r"has no row for model.layers.0.self_attn.q_proj in int4 with int8_tensor. Make"
    ):
        find(sensitivity_of(rows, "s.tsv"), model, Target(0.8), "tensor", SETTINGS)


def test_a_table_of_a_larger_model_is_refused():
    with pytest.raises(UserError, match="has rows for model.layers.5.*which the model does not have"):
        find(sensitivity_of(table_rows(info(6)), "s.tsv"), info(5), Target(0.8), "tensor", SETTINGS)


def test_the_result_is_printed_with_every_layer_and_the_gap(capsys):
    model = info()
    plan, found = searched(Target(0.8), model)
    print_result(plan, found, model)
    text, eight = capsys.readouterr().out, activation_bits(plan, model).count(8)
    assert all(layer.name in text for layer in model.quantizable)
    assert f"A4: {20 - eight} layers, A8: {eight} layers" in text and "compression 0.8000, target 0.8: held" in text
    assert f"gap {100 * plan.summary['gap']:.4f} %" in text


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
    write_config(tmp_path / "config.json", plan, LayerPlan(), model, "search_summary")
    write_plan(tmp_path / "plan.json", plan, LayerPlan(), model, "search_summary")
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
    write_config(tmp_path / "config.json", plan, LayerPlan(), model, "search_summary")
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
    assert "holds neither group size nor activation scope" in caplog.text
    assert formats(read_pt(tmp_path / "made.pt", model, "token"), model) == formats(plan, model)


def test_factors_of_another_configuration_are_refused(tmp_path):
    model = info()
    plan, _ = searched(Target(0.8), model, smoothing=smoothing_for(model))
    write_pt(tmp_path / "made.pt", plan, model)
    content = torch.load(tmp_path / "made.pt", weights_only=True)
    content[model.quantizable[1].name]["smooth_alpha"] = 0.5
    torch.save(content, tmp_path / "made.pt")
    with pytest.raises(UserError, match="belongs to another configuration than made.pt"):
        read_pt(tmp_path / "made.pt", model)
    smaller = replace(smoothing_for(model).groups[0], scale=torch.ones(8))
    write_pt(tmp_path / "made.pt", replace(plan, smoothing=Smoothing((smaller,))), model)
    with pytest.raises(UserError, match="belongs to another configuration"):
        read_pt(tmp_path / "made.pt", model)
    smoothing_path(tmp_path / "made.pt").unlink()
    with pytest.raises(UserError, match="is no file of smoothing factors"):
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
