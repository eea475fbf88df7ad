"""Rounding with error feedback on one layer: equal to the published algorithm, on every format's grid, and never worse than nearest."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bitplan.core.errors import UserError
from bitplan.formats.base import Quantized
from bitplan.formats.facts import TYPE_NAMES
from bitplan.formats.table import FORMATS
from bitplan.rounding.columns import FormatColumns, LayerToRound, columns_at_once
from bitplan.rounding.feedback import round_with_feedback
from bitplan.rounding.gguf_blocks import BLOCKS, codes_of, write_codes_
from bitplan.rounding.grids import GRIDS
from bitplan.rounding.layer import FEEDBACK, NEAREST, round_layer
from bitplan.rounding.sweep import Pruning, damped_factors, sweep_columns
from bitplan.rounding.tuning import Choice, TuningSettings, _batches, error_of, tune_
from bitplan.statistics.hessian import CrossMoments
from tests.unit.search.published_algorithms import gptq

# Their quantizers choose whole groups of values from a code book, or a scale that no other code fits.
WITHOUT_GRID = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "tq1_0", "tq2_0")
WITH_CODES = sorted(
    name
    for name, form in FORMATS.items()
    if form.family in ("gguf", "mx", "nvfp4") or (form.family == "int" and form.scope == "block")
    if name not in WITHOUT_GRID
)


def layer_to_round(name: str, rows: int = 24, columns: int = 512, seed: int = 0, group: int = 32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=dtype) * 0.05
    mixing = torch.randn(columns, columns, generator=generator, dtype=dtype) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(4 * columns, columns, generator=generator, dtype=dtype) @ mixing
    form = FORMATS[name]
    hessian = 2 / len(inputs) * inputs.T @ inputs
    return LayerToRound(name, weight, hessian, form, form.group(None if form.fixed_block else group)), inputs


def swept(layer: LayerToRound, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values that the sweep has worked with, and those that the parts stand for."""
    columns = FormatColumns(layer, torch.empty_like(layer.weight.T.contiguous()), layer.importance)
    result = sweep_columns(layer.weight, upper, Pruning(), columns, columns_at_once(layer.group))
    return result.values.T, layer.values(columns.quantized())


def test_every_format_with_codes_has_a_grid():
    assert sorted(GRIDS) == WITH_CODES


@pytest.mark.parametrize("name", WITH_CODES)
def test_what_the_sweep_works_with_is_what_the_parts_decode_to(name):
    layer, _ = layer_to_round(name)
    simulated, decoded = swept(layer, damped_factors(layer.hessian, 0.01).upper)
    assert torch.equal(simulated, decoded)


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_any_codes_written_into_blocks_are_read_back_by_ggufs_own_decoder(kind):
    name = next(name for name, held in TYPE_NAMES.items() if held == kind)
    form, layout, grid = FORMATS[name], BLOCKS[kind], GRIDS[name]
    generator = torch.Generator().manual_seed(1)
    quantized = form.quantize(torch.randn(64, form.block, generator=generator), form.block, None)
    codes = torch.randint(0, 2**layout.bits, (64, form.block), generator=generator, dtype=torch.int32)
    # -0 and 0 of FP4 are one value; bytes of q8_0 are signed.
    table = torch.tensor(layout.table or range(2**layout.bits), dtype=torch.float32)
    elements = table[codes.long()] - (0 if layout.table else layout.zero)
    elements = elements - 256 * (elements > 127)
    written, levels = grid.write(quantized, elements), grid.read(quantized, form.block)
    expected = torch.stack([levels.values(elements[:, j], j) for j in range(form.block)], dim=1)
    assert torch.equal(form.dequantize(written, form.block), expected)
    blocks = quantized.parts["data"].clone()
    write_codes_(blocks, codes_of(elements, layout), layout)
    assert torch.equal(blocks, written.parts["data"])
    levels = grid.read(Quantized({"data": blocks}, quantized.shape), form.block)
    assert torch.equal(levels.scale, levels.scale), "writing codes must leave the scales"


@pytest.mark.parametrize("name", [name for name in WITH_CODES if name not in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")])
def test_without_correlations_it_is_rounding_to_nearest(name):
    # llama.cpp's types of 32 values weight columns by the whole row's mean square, which a block alone does not have.
    layer, _ = layer_to_round(name)
    _, result = swept(layer, torch.eye(512))
    assert (result == layer.values(layer.nearest())).float().mean() > 0.999


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_integers_with_one_scale_per_row_are_gptq_by_gaussian_elimination(bits):
    layer, inputs = layer_to_round(f"int{bits}", 12, 40, group=40, dtype=torch.float64)
    result = layer.values(round_with_feedback(layer, damped_factors(layer.hessian, 0.01)).quantized())
    assert torch.allclose(result, gptq(layer.weight, inputs, bits), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["q4_k", "int4", "mxfp4"])
def test_scales_are_found_on_weights_that_have_every_earlier_error(name):
    # Column by column, with no block of columns that is brought up to date at once.
    layer, _ = layer_to_round(name, 8, 512, group=64, dtype=torch.float64)
    upper = damped_factors(layer.hessian, 0.01).upper
    columns = FormatColumns(layer, torch.empty_like(layer.weight.T.contiguous()), layer.importance)
    rest = layer.weight.T.contiguous().clone()
    for j in range(len(rest)):
        column = rest[j].clone()
        rest[j] = columns.round_column(j, column, torch.zeros(8, dtype=torch.bool), rest[j:])
        rest[j + 1 :] -= torch.outer(upper[j, j + 1 :], (column - rest[j]) / upper[j, j])
    result = layer.values(round_with_feedback(layer, damped_factors(layer.hessian, 0.01)).quantized())
    assert torch.allclose(result, layer.values(columns.quantized()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    ["q2_k", "q4_k", "q6_k", "iq4_xs", "q5_1", "mxfp4", "mxfp8", "int3", "int4_asym", "int3_bf16s", "int4_asym_bf16s"],
)
def test_each_descent_lowers_the_error_of_the_layer(name):
    layer, _ = layer_to_round(name)
    factors = damped_factors(layer.hessian, 0.01)
    errors = [layer.error(round_with_feedback(layer, factors, descents).quantized()) for descents in range(4)]
    assert errors == sorted(errors, reverse=True) and errors[1] < 0.97 * errors[0]


def test_a_descent_moves_each_column_to_its_best_place_given_all_others():
    layer, _ = layer_to_round("int4", 4, 48, dtype=torch.float64)
    columns = round_with_feedback(layer, damped_factors(layer.hessian, 0.01), 50)
    hessian = layer.hessian.clone()
    hessian.diagonal().add_(0.001 * hessian.diagonal().mean())
    change = columns.values().T - layer.weight
    least = ((change @ hessian) * change).sum()
    for j in range(48):
        for step in (-1, 1):
            other = change.clone()
            other[:, j] += step * columns.levels[j // 32].scale[0]
            error = ((other @ hessian) * other).sum(1)
            reachable = (columns.elements[j] + step).abs() <= 7
            assert (error[reachable] >= ((change @ hessian) * change).sum(1)[reachable] - 1e-15).all()
    assert least > 0


@pytest.mark.parametrize("span", [1, 32, 48, 100, 128, 192, 256, 509, 4096])
def test_blocks_of_columns_and_spans_of_scales_nest(span):
    block = columns_at_once(span)
    assert block % span == 0 or span % block == 0


@pytest.mark.parametrize("name", WITH_CODES)
def test_a_layers_error_is_never_above_that_of_rounding_to_nearest(name):
    for seed in range(3):
        layer, _ = layer_to_round(name, 8, 256, seed)
        result = round_layer(layer)
        assert layer.error(result.quantized) == result.error <= result.error_nearest == layer.error(layer.nearest())
        if name != "int2":
            assert result.rounding == FEEDBACK and result.error < 0.9 * result.error_nearest


def test_feedback_that_is_worse_than_nearest_is_not_taken_and_the_log_says_so(caplog, monkeypatch):
    layer, _ = layer_to_round("q4_k")
    worse = LayerToRound("q4_k", layer.weight + 1, layer.hessian, layer.form, layer.group)
    monkeypatch.setattr(
        "bitplan.rounding.layer.round_with_feedback", lambda layer, *how: round_with_feedback(worse, *how)
    )
    result = round_layer(layer)
    assert result.rounding == NEAREST and result.error == result.error_nearest and "layer error" in result.why
    assert torch.equal(result.quantized.parts["data"], layer.nearest().parts["data"])
    assert len(caplog.records) == 1 and "q4_k: rounded to nearest" in caplog.text


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_layer_aims_at_the_least_squares_weight_for_the_outputs_between_its_own_and_the_references(share):
    plain, _ = layer_to_round("q4_k", 6, 256, dtype=torch.float64)
    generator = torch.Generator().manual_seed(9)
    inputs, noise = (torch.randn(1024, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    reference = inputs + 0.1 * noise
    asked = replace(plain, hessian=2 / len(inputs) * inputs.T @ inputs)
    cross = CrossMoments.empty(256, inputs.device, torch.float64)
    for some in range(0, len(inputs), 256):
        cross.add_(inputs[some : some + 256], reference[some : some + 256], some // 512)
    layer = replace(asked, drift=asked.weight @ cross.matrix, share=share)
    aimed = layer.aimed(damped_factors(asked.hessian, 1e-9))
    outputs = ((1 - share) * inputs + share * reference) @ asked.weight.T
    torch.testing.assert_close(aimed.weight, torch.linalg.lstsq(inputs, outputs).solution.T, rtol=1e-5, atol=1e-6)


def test_a_layer_rounded_towards_the_reference_is_judged_by_that_and_falls_back_to_the_nearest_of_its_own_weight(
    monkeypatch,
):
    asked, _ = layer_to_round("q4_k")
    noise = 0.02 * torch.randn(512, 512, generator=torch.Generator().manual_seed(3))
    layer = replace(asked, drift=asked.weight @ noise, share=0.5)
    made, aimed = round_layer(layer), layer.aimed(damped_factors(asked.hessian, asked.damping))
    assert made.rounding == FEEDBACK and made.error == pytest.approx(aimed.error(made.quantized))
    assert made.error_nearest == pytest.approx(aimed.error(asked.nearest()))
    worse = replace(asked, weight=asked.weight + 1)
    monkeypatch.setattr(
        "bitplan.rounding.layer.round_with_feedback", lambda layer, *how: round_with_feedback(worse, *how)
    )
    assert torch.equal(round_layer(layer).quantized.parts["data"], asked.nearest().parts["data"])


def test_a_hessian_that_is_a_little_indefinite_is_damped_more(caplog):
    layer, _ = layer_to_round("q4_k")
    low, vectors = torch.linalg.eigh(layer.hessian)
    low[0] = -0.05 * layer.hessian.diagonal().mean()
    result = round_layer(
        LayerToRound("q", layer.weight, vectors @ torch.diag(low) @ vectors.T, layer.form, layer.group)
    )
    assert result.rounding == FEEDBACK and result.damping == pytest.approx(0.1)
    assert len(caplog.records) == 1 and "q: the Hessian is not positive definite; damped by 0.1" in caplog.text


def test_a_hessian_that_no_damping_repairs_leaves_nearest_with_one_line_in_the_log(caplog):
    layer, _ = layer_to_round("q4_k")
    hessian = layer.hessian.clone()
    hessian[0, 1] = hessian[1, 0] = 1e6
    result = round_layer(LayerToRound("q", layer.weight, hessian, layer.form, layer.group))
    assert result.rounding == NEAREST and result.damping is None and "not positive definite" in result.why
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_layer_that_no_token_reached_is_rounded_to_nearest_without_importance(caplog):
    layer, _ = layer_to_round("q4_k")
    result = round_layer(LayerToRound("q", layer.weight, torch.zeros_like(layer.hessian), layer.form, layer.group))
    plain = layer.form.quantize(layer.weight, layer.group, None)
    assert result.rounding == NEAREST and torch.equal(result.quantized.parts["data"], plain.parts["data"])
    assert "no token reached it" in caplog.text


def test_inputs_that_are_not_finite_are_refused():
    layer, _ = layer_to_round("q4_k")
    with pytest.raises(UserError, match="ROUNDING-INPUTS-NOT-FINITE"):
        round_layer(LayerToRound("q", layer.weight, layer.hessian * float("nan"), layer.form, layer.group))


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "q6_k", "iq4_xs", "q4_0", "mxfp4", "int3_asym"])
def test_columns_without_input_take_no_part_and_stay_near_their_weights(name):
    layer, inputs = layer_to_round(name)
    inputs[:, 40:140] = 0
    hessian = 2 / len(inputs) * inputs.T @ inputs
    dead = LayerToRound(name, layer.weight, hessian, layer.form, layer.group)
    result = round_layer(dead)
    values = dead.values(result.quantized)
    assert result.rounding == FEEDBACK and torch.isfinite(values).all()
    # A weight that no token has used is still what it was: another text may use it.
    change = (values - layer.weight)[:, 40:140].square().mean() / layer.weight.square().mean()
    assert change < {"q2_k": 0.2, "int3_asym": 0.1}.get(name, 0.03)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "int4", "int4_asym"])
@pytest.mark.parametrize("columns", [33, 80, 17])
def test_rows_that_are_no_multiple_of_the_block_are_rounded_whole(name, columns):
    layer, _ = layer_to_round(name, 8, columns)
    result = round_layer(layer)
    whole = layer.nearest()
    assert result.quantized.shape == (8, columns)
    assert {part: value.shape for part, value in result.quantized.parts.items()} == {
        part: value.shape for part, value in whole.parts.items()
    }
    assert result.error <= result.error_nearest and layer.values(result.quantized).shape == (8, columns)


def test_a_weight_of_zeros_stays_zero():
    for name in WITH_CODES:
        layer, _ = layer_to_round(name, 8, 256)
        result = round_layer(LayerToRound(name, torch.zeros(8, 256), layer.hessian, layer.form, layer.group))
        assert result.error == 0 and not layer.values(result.quantized).any(), name


@pytest.mark.parametrize("name", ["q4_k", "mxfp6_e3m2", "int5_asym", "int5_bf16s"])
def test_sizes_are_those_of_rounding_to_nearest(name):
    layer, _ = layer_to_round(name)
    result, plain = round_layer(layer).quantized, layer.nearest()
    assert result.nbytes == plain.nbytes and result.parts.keys() == plain.parts.keys()
    assert all(result.parts[key].dtype == plain.parts[key].dtype for key in result.parts)


# --------------------------------------------------------------------------------------------------------------- tuning


def found_by_feedback(name: str, rows: int = 24):
    layer, inputs = layer_to_round(name, rows, 256)
    return layer, inputs, round_with_feedback(layer, damped_factors(layer.hessian, 0.01), tunable=True)


@pytest.mark.parametrize("name", WITH_CODES)
def test_the_choice_of_each_weight_is_between_two_neighbours_and_begins_where_feedback_ended(name):
    _, _, columns = found_by_feedback(name, 4)
    choice = Choice.of(columns)
    assert torch.equal(choice.values(), columns.values())
    assert (choice.lower <= choice.upper).all() and (choice.position >= 0).all() and (choice.position <= 1).all()
    # Both are on the grid, with nothing between them.
    for number, levels in enumerate(columns.levels):
        some = slice(number * columns.span, (number + 1) * columns.span)
        places = torch.arange(len(choice.lower[some]))
        for end in (choice.lower[some], choice.upper[some]):
            scaled = torch.where(levels.scale[places // levels.run] == 0, 0, end)
            assert torch.equal(levels.kind.nearest(scaled.clone(), places // levels.run), scaled)
        above = levels.kind.beside(choice.lower[some], torch.ones_like(choice.lower[some]), places // levels.run)
        inside = choice.upper[some] > choice.lower[some]
        assert torch.equal(above[inside], choice.upper[some][inside])


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "iq4_xs", "mxfp4", "int4_asym", "int4_bf16s"])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_tuning_lowers_the_error_of_a_blocks_output_and_its_codes_give_the_error_that_it_returns(name, kind):
    layer, inputs, columns = found_by_feedback(name)
    module = nn.Linear(256, 24, bias=False) if kind == "Linear" else Conv1D(24, 256)
    stored = (lambda values: values.contiguous()) if kind == "Linear" else (lambda values: values.T.contiguous())
    hidden = inputs[:512].reshape(8, 64, 256)

    def forward(states):
        return nn.functional.silu(module(states) * 4)

    # Not the layer's own outputs: those that the full-precision model has, on its own inputs.
    module.weight = nn.Parameter(stored(layer.weight))
    target = forward(hidden + 0.3 * torch.roll(hidden, 1, 2)).detach()
    elements = columns.elements.clone()
    before, after = tune_({"l": module}, {"l": columns}, hidden, target, forward, TuningSettings(30, 512))
    assert after < 0.97 * before and not torch.equal(columns.elements, elements)
    module.weight = nn.Parameter(stored(layer.values(columns.quantized())))
    assert error_of(forward(hidden), target).item() == pytest.approx(after, rel=1e-4)


def test_tuning_that_does_not_help_leaves_what_feedback_has_found():
    layer, inputs, columns = found_by_feedback("q4_k")
    module, elements = nn.Linear(256, 24, bias=False), columns.elements.clone()
    hidden = inputs[:512].reshape(8, 64, 256)
    target = (hidden @ layer.weight.T).detach()
    far = TuningSettings(2, 64, reach=5.0)
    before, after = tune_({"l": module}, {"l": columns}, hidden, target, module.forward, far)
    assert before < after and torch.equal(columns.elements, elements)
    assert all(far.rate(step) > 0 for step in range(2)) and sum(map(far.rate, range(2))) == pytest.approx(5.0)


def test_an_error_counts_by_the_size_of_its_token():
    target = torch.tensor([[1.0, 1.0], [100.0, 100.0]])
    assert error_of(target * 1.1, target).item() == pytest.approx(0.01, rel=1e-4)
    assert error_of(target + torch.tensor([[0.0, 0.0], [10.0, 10.0]]), target).item() == pytest.approx(0.005, rel=1e-4)


def test_every_window_is_seen_before_one_is_seen_again():
    seen = torch.cat(list(_batches(6, 100, TuningSettings(3, 250))))
    assert sorted(seen.tolist()) == list(range(6))
    assert [len(chosen) for chosen in _batches(2, 100, TuningSettings(3, 1000))] == [2, 2, 2]
