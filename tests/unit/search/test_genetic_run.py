"""The genetic search on a model: importance, targets that hold, the exact optimum beside it, and what is written of it."""

import math

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.core.files import write_table
from bitplan.plans.plan import average_bits, uniform_plan
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
from tests.unit.search.genetic_models import PALETTE, SETTINGS, activation_bits, formats, info, searched, table_rows

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
    with pytest.raises(UserError, match=r"SEARCH-TARGET-OUT-OF-REACH.*0.6667 to 1.0000"):
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
    with pytest.raises(UserError, match=rf"allows {math.ceil(1e4 * low) / 1e4:.4f} to {high:.4f}"):
        searched(Target(None, low - 0.01, PALETTE), model)
    plan, _ = searched(Target(None, math.ceil(1e4 * low) / 1e4, PALETTE), model)
    assert average_bits(plan, model).avg_bits == pytest.approx(low)


@pytest.mark.parametrize("target", [Target(0.75, None, PALETTE), Target(0.75, 8.0)])
def test_a_palette_and_average_bits_go_together(target):
    with pytest.raises(UserError, match="GENETIC-BAD-FLAGS"):
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
        ({"mse": "high"}, "mse", "SENSITIVITY-BAD-CELL.*'high'"),
        ({"mse": "nan"}, "mse", "SENSITIVITY-BAD-CELL.*'nan'"),
        ({"mse": "inf"}, "mse", "SENSITIVITY-BAD-CELL.*'inf'"),
        ({"mse": -1.0}, "mse", "SENSITIVITY-BAD-CELL.*-1.0"),
        ({"bytes": ""}, "mse", "SENSITIVITY-BAD-CELL.*bytes"),
        ({"bytes": "0"}, "mse", "SENSITIVITY-BAD-CELL.*bytes"),
        ({"inputs": "bf16"}, "mse", "SENSITIVITY-ROW-TWICE.*model.layers.0.self_attn.q_proj in int4 with bf16"),
        ({"mse": ""}, "mse", "SENSITIVITY-BAD-CELL.*mse is empty"),
        ({"mse": None, "tokens": 5}, "mse", "SENSITIVITY-BAD-CELL.*mse is empty"),
        ({"mse": "", "tokens": "-"}, "mse", "SENSITIVITY-BAD-CELL.*mse is empty"),
        ({"layer": "model.layers.9.self_attn.q_proj"}, "mse", "SENSITIVITY-NO-ROW.*model.layers.0.self_attn.q_proj in"),
        ({"group_size": "some"}, "mse", "SENSITIVITY-BAD-CELL.*group_size 'some'"),
        ({}, "kld", "SENSITIVITY-NO-FIGURES.*kld"),
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
    with pytest.raises(UserError, match=r"SENSITIVITY-NO-ROW.*in int4 with int8_tensor"):
        find(sensitivity_of(rows, "s.tsv"), model, Target(0.8), "tensor", SETTINGS)


def test_a_table_of_a_larger_model_is_refused():
    with pytest.raises(UserError, match="SENSITIVITY-FOREIGN-ROWS"):
        find(sensitivity_of(table_rows(info(6)), "s.tsv"), info(5), Target(0.8), "tensor", SETTINGS)


def test_the_result_is_printed_with_every_layer_and_the_gap(capsys):
    model = info()
    plan, found = searched(Target(0.8), model)
    print_result(plan, found, model)
    text, eight = capsys.readouterr().out, activation_bits(plan, model).count(8)
    assert all(layer.name in text for layer in model.quantizable)
    assert f"A4: {20 - eight} layers, A8: {eight} layers" in text and "compression 0.8000, target 0.8: held" in text
    assert f"gap {100 * plan.summary['gap']:.4f} %" in text
