"""Fewer calibration tokens than columns: error feedback has to be better on tokens that it has not seen, and a warning says so."""

from dataclasses import replace

import pytest
import torch

from bitplan.plans.plan import uniform_plan
from bitplan.rounding.held_out import held_out_ratio, needs_judging
from bitplan.rounding.layer import FEEDBACK, NEAREST, round_layer
from bitplan.rounding.model import COLUMNS, ModelRounding, round_plan
from tests.families import make_family
from tests.unit.rounding.test_rounding import layer_to_round
from tests.unit.search.opened_models import Opened
from tests.unit.statistics.test_shrinkage import halved


def with_inputs(inputs: torch.Tensor, name: str = "int4", aware: bool = True):
    """A layer as the walk asks for it, or with the plain moments that know nothing of their noise."""
    layer, _ = layer_to_round(name, 24, inputs.shape[1])
    moments = halved(inputs)
    if not aware:
        return replace(layer, hessian=moments.plain)
    layer = replace(layer, hessian=moments.hessian, tokens=moments.tokens)
    return replace(layer, held_out=held_out_ratio(layer, moments, 2)) if needs_judging(layer, moments) else layer


def inputs_of(layer_inputs: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Some tokens to calibrate on, and H of all others."""
    rest = layer_inputs[tokens:]
    return layer_inputs[:tokens], 2 / len(rest) * rest.T @ rest


@pytest.mark.parametrize("tokens", [16, 48, 120])
def test_with_fewer_tokens_than_columns_feedback_beats_nearest_on_other_text(tokens):
    _, inputs = layer_to_round("int4", 24, 256)
    some, truth = inputs_of(inputs, tokens)
    asked = with_inputs(some)
    judge = replace(asked, hessian=truth)
    nearest = judge.error(asked.nearest())
    aware, unaware = (round_layer(with_inputs(some, aware=flag)).quantized for flag in (True, False))
    assert judge.error(aware) <= nearest < judge.error(unaware)


def test_inputs_without_correlations_leave_so_little_to_gain_that_nearest_may_stay(caplog):
    inputs = torch.randn(24, 256, generator=torch.Generator().manual_seed(0))
    result = round_layer(replace(with_inputs(inputs), held_out=1.25))
    assert result.rounding == NEAREST and result.why.startswith("on tokens held out of 24") and "1.25" in result.why
    assert "rounded to nearest: on tokens held out" in caplog.text


def test_only_layers_with_few_tokens_are_judged_on_those_held_out():
    layer, inputs = layer_to_round("int4", 24, 256)
    assert [needs_judging(layer, halved(inputs[:tokens])) for tokens in (511, 512)] == [True, False]
    assert round_layer(with_inputs(inputs[:512])).rounding == FEEDBACK


def test_what_half_of_the_tokens_gain_on_the_other_half_is_near_what_all_gain_on_other_text():
    _, inputs = layer_to_round("int4", 24, 256)
    some, truth = inputs_of(inputs, 200)
    asked = with_inputs(some)
    judge = replace(asked, hessian=truth)
    gained = judge.error(round_layer(asked).quantized) / judge.error(asked.nearest())
    assert gained - 0.02 < asked.held_out < gained + 0.25


def test_a_layer_that_one_half_of_the_text_does_not_reach_cannot_be_judged():
    layer, inputs = layer_to_round("int4", 24, 256)
    assert held_out_ratio(layer, halved(inputs[:20], 0), 2) is None


def test_the_log_warns_of_few_tokens_once_and_the_table_says_how_many_each_layer_had(tmp_path, caplog):
    case = Opened(make_family("llama", tmp_path / "model"))
    columns = max(layer.shape[1] for layer in case.info.quantizable)
    plan = uniform_plan(case.info, "int4", group_size=32)
    for length in (columns - 1, columns):
        caplog.clear()
        tokens = case.reference.tokens.reshape(1, -1)[:, :length]
        _, rows = round_plan(case.model, case.info, plan, tokens, ModelRounding(), tmp_path / f"{length}")
        assert caplog.text.count("ROUNDING-FEW-TOKENS") == (length < columns)
        assert {row["tokens"] for row in rows} == {length} and max(row["columns"] for row in rows) == columns
        assert all(0 <= row["shrinkage"] <= 1 for row in rows) and set(COLUMNS) == set(rows[0])
