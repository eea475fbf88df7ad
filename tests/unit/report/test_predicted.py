"""What a sensitivity table predicts of plans that no step made."""

from dataclasses import replace

import numpy as np
import pytest

from bitplan.models.layers import Layer, ModelInfo
from bitplan.report.front import OF_FILES
from bitplan.report.predicted import Prediction, file_overhead, measured_over_predicted, prediction
from bitplan.search.allocation.problem import AVG_BITS, Target, allocate, allocation_problem
from bitplan.sensitivity.table import SensitivityTable

NAMES = tuple(f"model.layers.{block}.mlp.up_proj" for block in (0, 1))
LAYERS = tuple(Layer(name, "mlp_up", (64, 64), block, "", False) for block, name in enumerate(NAMES))
INFO = ModelInfo("some/model", "", "", "llama", 2 * 64 * 64, LAYERS)
PALETTE = ("q4_0", "q5_0", "q8_0")
SIZE = np.array([[4.5, 5.5, 8.5]] * 2) * 64 * 64 / 8
KL = np.array([[0.015, 0.004, 1e-4], [0.005, 0.001, 2e-5]])


def known(kl: np.ndarray = KL, parameters: int = INFO.parameters) -> Prediction:
    """The prediction of a table of two layers in three formats; inf: no row."""
    size = np.where(np.isfinite(kl), SIZE, 0.0)
    table = SensitivityTable(NAMES, PALETTE, np.array([4096.0, 4096.0]), size, kl, ("mlp_up", "mlp_up"))
    return prediction(table, PALETTE, replace(INFO, parameters=parameters))


def test_the_predicted_front_goes_from_the_smallest_plan_to_the_largest_and_each_is_optimal():
    made = known()
    assert [made.formats(made.front[0]), made.formats(made.front[-1])] == ["q4_0 x 2", "q8_0 x 2"]
    sizes, damages = ([getattr(plan, key) for plan in made.front] for key in ("bits", "kl"))
    assert sizes == sorted(set(sizes)) and damages == sorted(set(damages), reverse=True)
    assert len(made.front) > 4
    problem = allocation_problem(made.table)
    for plan in made.front:
        layers = sum(made.table.size[row, place] for row, place in enumerate(plan.choice)) * 8 / made.table.params.sum()
        assert allocate(problem, [Target(AVG_BITS, layers)])[0].kld == pytest.approx(plan.kl)


def test_parameters_outside_the_table_count_16_bits():
    plan = known(parameters=10240).front[0]
    assert plan.bits == pytest.approx((4.5 * 8192 + 16 * 2048) / 10240) and plan.kl == pytest.approx(0.02)


def test_a_plan_of_one_format_takes_the_nearest_where_a_layer_lacks_it():
    kl = KL.copy()
    kl[1, 1] = np.inf
    plan = next(plan for plan in known(kl).uniform if plan.name == "mostly q5_0")
    assert plan.kl == pytest.approx(0.004 + 0.005)


def test_a_plan_of_a_format_that_no_layer_can_have_is_named_by_what_its_layers_have():
    table = replace(known().table, asked={(name, "q5_0"): ("q4_k", "q5_k") for name in NAMES})
    plans = prediction(table, (*PALETTE, "q4_k", "q5_k"), INFO).uniform
    assert [plan.name for plan in plans] == ["all q4_0", "all q5_0 (for q4_k, q5_k)", "all q8_0"]
    alone = prediction(table, ("q4_0", "q4_k"), INFO).uniform
    assert [plan.name for plan in alone] == ["all q4_0", "all q5_0 (for q4_k)"]


def test_sizes_of_files_are_above_average_bits_by_what_the_optimal_plans_files_have_more():
    row = {"method": "optimal", "avg_bits_file": 5.1, "file_kl": 0.002, "avg_bits": 5.0, "kl_predicted": 0.004}
    assert file_overhead([row, {**row, "method": "random", "avg_bits": 1.0}], OF_FILES) == pytest.approx(0.1)
    assert file_overhead([], OF_FILES) == 0.0
    assert "0.50 times" in measured_over_predicted([row], OF_FILES)
    assert "0.50 to 1.00 times" in measured_over_predicted([row, {**row, "file_kl": 0.004}], OF_FILES)
    assert measured_over_predicted([{**row, "kl_predicted": None}], OF_FILES) == ""
