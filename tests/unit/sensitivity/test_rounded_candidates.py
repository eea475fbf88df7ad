"""Prices of candidates that are rounded with error feedback."""

from dataclasses import replace

import pytest
import torch

from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from bitplan.formats.table import FORMATS
from bitplan.rounding.columns import LayerToRound
from bitplan.rounding.layer import round_layer
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.local_errors import Choice, SensitivitySettings, quantized_weights
from bitplan.sensitivity.rounded_candidates import rounded_weights
from bitplan.sensitivity.run import check_flags, write_sensitivity
from tests.measured_models import PRICED

CHOICES = (Choice("int3", group_size=32), Choice("int3", "int8_token", 32))


@pytest.fixture(scope="module")
def layer():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1024, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    weight = torch.randn(16, 64, generator=generator) * 0.1
    return weight, 2 / len(inputs) * inputs.T @ inputs, 0.5 + torch.rand(64, generator=generator)


def test_a_candidate_is_what_rounding_a_layer_makes_of_it(layer):
    weight, hessian, scale = layer
    made = rounded_weights("q", weight, CHOICES, hessian, scale)
    form = FORMATS["int3"]
    alone = LayerToRound("q", weight, hessian, form, 32)
    assert torch.equal(made[0], alone.values(round_layer(alone).quantized))
    smoothed = LayerToRound("q", weight * scale, hessian / torch.outer(scale, scale), form, 32)
    assert torch.equal(made[1], smoothed.values(round_layer(smoothed).quantized))


def test_formats_without_codes_are_as_they_are(layer):
    weight, hessian, _ = layer
    choices = (CHOICES[0], Choice("fp16"), Choice("bf16"))
    plain, made = quantized_weights(weight, choices), rounded_weights("q", weight, choices, hessian)
    assert torch.equal(plain[1], made[1]) and torch.equal(plain[2], made[2]) and not torch.equal(plain[0], made[0])


def test_prices_of_rounded_candidates_are_lower_and_kept_apart_from_those_of_nearest_ones(llama, tmp_path):
    settings = SensitivitySettings((Choice("int3", group_size=32),), (), tokens=64)
    sums = {}
    for rounding in ("nearest", "feedback"):
        made = llama.measured(tmp_path / "s.tsv", replace(PRICED, rounding=rounding), settings)
        write_sensitivity(tmp_path / f"{rounding}.tsv", made.rows, made.smoothing)
        sums[rounding] = sum(row["price"] for row in made.rows)
    assert sums["feedback"] < 0.8 * sums["nearest"]


def test_what_is_measured_is_rounded_to_nearest_so_that_feedback_is_for_prices_alone():
    for measure in (MeasureSettings("all", rounding="feedback"), replace(PRICED, anchors="1", rounding="feedback")):
        with pytest.raises(UserError, match="--rounding feedback"):
            check_flags(measure, "text.txt")
    check_flags(replace(PRICED, rounding="feedback"), "text.txt")
    model = {"path": "demo/model", "calibration": "a.txt", "evaluation": "b.txt"}
    config = {"models": {"m": model}, "plans": {"p": {"method": "random"}}}
    for sensitivity in ({"anchors": "all"}, {"metric": "gradient", "anchors": "all"}):
        with pytest.raises(UserError, match="rounding feedback goes with metric gradient"):
            parse_settings({**config, "sensitivity": {**sensitivity, "rounding": "feedback"}})
    parse_settings({**config, "sensitivity": {"metric": "gradient", "rounding": "feedback"}})
