"""Candidates of weights and inputs where rows do not fit the weights' format: they get its substitute, and the inputs stay."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.core.files import read_table
from bitplan.formats.fitting import fitting_format
from bitplan.plans.plan import Plan
from bitplan.reference.opening import PreparedModel, prepare_model
from bitplan.search.allocation.constraints import Constraints
from bitplan.search.allocation.problem import AVG_BITS, Target, allocate, allocation_problem
from bitplan.search.genetic.algorithm import GeneticSettings
from bitplan.search.genetic.rows import read_sensitivity
from bitplan.search.genetic.run import Target as GeneticTarget
from bitplan.search.genetic.run import genetic_plan
from bitplan.search.optimal.candidates import chosen_table
from bitplan.search.optimal.run import plan_maker
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.local_errors import SensitivitySettings, activation_choices, choice_named
from bitplan.sensitivity.run import make_table
from bitplan.sensitivity.table import of_palette, read_sensitivity_table
from tests.unit.formats.test_fitting import TEXT, make_llama

PALETTE = ("q4_k/int8_token", "q8_0", "int4_g32", "int4_g16")
# Rows of down_proj alone have a whole block of q4_k.
FITS, NOTE = "down_proj", "q4_k/int8_token -> q5_0/int8_token: 64 columns"


@dataclass(frozen=True)
class Priced:
    """A model most of whose rows do not fit q4_k, and its table, measured and priced."""

    opened: PreparedModel
    table: Path


@pytest.fixture(scope="module")
def priced(tmp_path_factory) -> Priced:
    folder = tmp_path_factory.mktemp("pairs")
    model = prepare_model(make_llama(folder / "model", 64, 512), "fp32", "cpu", 1)
    settings = SensitivitySettings((*activation_choices("tensor", 32), *map(choice_named, PALETTE)), ())
    make_table(model, str(TEXT), 32, 8, settings, MeasureSettings("all", draws=16), None, folder / "s.tsv")
    return Priced(model, folder / "s.tsv")


def fitting(layer: str) -> str:
    return "q4_k/int8_token" if FITS in layer else "q5_0/int8_token"


@pytest.mark.parametrize(
    ("name", "columns", "used"),
    [
        ("q4_k/int8_token", 64, "q5_0/int8_token"),
        ("q4_k/int8_token", 256, "q4_k/int8_token"),
        ("q8_0/mxfp8", 40, "bf16/mxfp8"),
        ("mxfp4/mxfp8", 40, "mxfp4/mxfp8"),
        ("int4_g128/int8_token", 40, "int4_g128/int8_token"),
    ],
)
def test_the_weights_of_a_candidate_are_fitted_and_its_inputs_stay(name, columns, used):
    assert fitting_format(name, columns) == used


def test_every_layer_is_priced_in_what_it_is_measured_in(priced):
    rows = [row for row in read_table(priced.table) if row["asked"] == "q4_k"]
    assert len(rows) == len(priced.opened.info.quantizable)
    assert all(f"{row['format']}/{row['inputs']}" == fitting(row["layer"]) for row in rows)
    price, kld = (sum(float(row[name]) for row in rows) for name in ("price", "kld"))
    assert price == pytest.approx(kld, rel=0.25) and {row["kld_from"] for row in rows} == {"measured"}


def test_a_plan_of_the_optimal_search_has_the_fitted_candidates_and_says_what_was_asked(priced):
    info = priced.opened.info
    table = chosen_table(read_sensitivity_table(priced.table, PALETTE[:1]), PALETTE[:1], info, priced.table)
    assert set(table.formats) == {"q4_k/int8_token", "q5_0/int8_token"}
    problem = allocation_problem(table, Constraints(()))
    (made,) = allocate(problem, [Target(AVG_BITS, 6.0)])
    assert all(form == fitting(layer) for layer, form in made.plan.items())
    choice = np.array([table.formats.index(fitting(layer)) for layer in table.layers])
    check_fitted(plan_maker(problem, info, PALETTE[:1])(choice), priced)


def check_fitted(plan: Plan, priced: Priced) -> None:
    for layer in priced.opened.info.quantizable:
        own = plan.of(layer.name)
        assert f"{own.wq}/{own.aq}" == fitting(layer.name)
        assert own.notes.get("substitute") == (None if FITS in layer.name else NOTE)


def test_a_genetic_plan_has_the_fitted_candidates_and_says_what_was_asked(priced):
    target = GeneticTarget(avg_bits=14, palette=PALETTE[:1], metric="kld")
    table = read_sensitivity(priced.table)
    plan, _ = genetic_plan(table, None, priced.opened.info, target, "tensor", GeneticSettings(8, 4))
    check_fitted(plan, priced)
    assert plan.summary["kld_from"] == {"measured": len(priced.opened.info.quantizable)}


def test_an_allocation_may_name_the_candidate_that_a_row_stands_for(priced):
    table = of_palette(read_sensitivity_table(priced.table, PALETTE), PALETTE[:1])
    assert table.formats == ("q4_k/int8_token", "q5_0/int8_token") and table.has.sum() == len(table.layers)
    with pytest.raises(UserError, match="SENSITIVITY-NO-FORMAT"):
        of_palette(table, ("q4_k",))


def test_a_format_in_two_groups_is_two_candidates_of_a_genetic_plan(priced):
    info, table = priced.opened.info, read_sensitivity(priced.table)
    for palette, group in ((("int4_g32",), 32), (("int4_g16",), 16)):
        target = GeneticTarget(avg_bits=14, palette=palette, metric="mse")
        plan, _ = genetic_plan(table, None, info, target, "tensor", GeneticSettings(8, 4))
        assert {plan.of(layer.name).group_size for layer in info.quantizable} == {group}
    small, large = (table.size(info.quantizable[0].name, (f"int4_g{group}", "bf16")) for group in (32, 16))
    assert small < large
