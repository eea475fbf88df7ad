"""Rounding with error feedback on one layer: equal to the published algorithm, on every format's grid, and never worse than nearest."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bitplan.core.errors import UserError
from bitplan.formats.base import Quantized
from bitplan.formats.table import FORMATS
from bitplan.rounding.columns import FormatColumns, LayerToRound, columns_at_once
from bitplan.rounding.gguf_blocks import BLOCKS, codes_of, write_codes_
from bitplan.rounding.grids import GRIDS
from bitplan.rounding.layer import FEEDBACK, NEAREST, feedback, round_layer
from bitplan.rounding.sweep import Pruning, damped_factors, sweep_columns
from bitplan.rounding.tuning import Choice, TuningSettings, _batches, error_of, tune_
from bitplan.statistics.hessian import CrossMoments
from tests.unit.search.test_sparsegpt import gptq

WITH_CODES = sorted(
    name
    for name, form in FORMATS.items()
    if form.family in ("gguf", "mx") or (form.family == "int" and form.scope == "block")
)


def layer_to_round(name: str, rows: int = 24, columns: int = 512, seed: int = 0, group: int = 32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=dtype) * 0.05
    mixing = torch.randn(columns, columns, generator=generator, dtype=dtype) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(4 * columns, columns, generator=generator, dtype=dtype) @ mixing
    form = FORMATS[name]
    hessian = 2 / len(inputs) * inputs.T @ inputs
    return LayerToRound(name, weight, hessian, form, form.group(None if form.fixed_block else group)), inputs


def swept(asked: LayerToRound, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values that the sweep has worked with, and those that the parts stand for."""
    columns = FormatColumns(asked, torch.empty_like(asked.weight.T.contiguous()), asked.importance)
    made = sweep_columns(asked.weight, upper, Pruning(), columns, columns_at_once(asked.group))
    return made.values.T, asked.values(columns.quantized())


def test_every_format_with_codes_has_a_grid():
    assert sorted(GRIDS) == WITH_CODES


@pytest.mark.parametrize("name", WITH_CODES)
def test_what_the_sweep_works_with_is_what_the_parts_decode_to(name):
    asked, _ = layer_to_round(name)
    simulated, decoded = swept(asked, damped_factors(asked.hessian, 0.01).upper)
    assert torch.equal(simulated, decoded)


@pytest.mark.parametrize("kind", sorted(BLOCKS))
def test_any_codes_written_into_blocks_are_read_back_by_ggufs_own_decoder(kind):
    name = next(form.name for form in FORMATS.values() if form.gguf_type == kind and form.family == "gguf")
    form, layout, grid = FORMATS[name], BLOCKS[kind], GRIDS[name]
    generator = torch.Generator().manual_seed(1)
    made = form.quantize(torch.randn(64, form.block, generator=generator), form.block, None)
    codes = torch.randint(0, 2**layout.bits, (64, form.block), generator=generator, dtype=torch.int32)
    # -0 and 0 of FP4 are one value; bytes of q8_0 are signed.
    table = torch.tensor(layout.table or range(2**layout.bits), dtype=torch.float32)
    elements = table[codes.long()] - (0 if layout.table else layout.zero)
    elements = elements - 256 * (elements > 127)
    written, levels = grid.write(made, elements), grid.read(made, form.block)
    wanted = torch.stack([levels.values(elements[:, j], j) for j in range(form.block)], dim=1)
    assert torch.equal(form.dequantize(written, form.block), wanted)
    blocks = made.parts["data"].clone()
    write_codes_(blocks, codes_of(elements, layout), layout)
    assert torch.equal(blocks, written.parts["data"])
    held = grid.read(Quantized({"data": blocks}, made.shape), form.block)
    assert torch.equal(held.scale, levels.scale), "writing codes must leave the scales"


@pytest.mark.parametrize("name", [name for name in WITH_CODES if name not in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")])
def test_without_correlations_it_is_rounding_to_nearest(name):
    # llama.cpp's types of 32 values weigh columns with the whole row's mean square, which a block alone does not have.
    asked, _ = layer_to_round(name)
    _, made = swept(asked, torch.eye(512))
    assert (made == asked.values(asked.nearest())).float().mean() > 0.999


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_integers_with_one_scale_per_row_are_gptq_by_gaussian_elimination(bits):
    asked, inputs = layer_to_round(f"int{bits}", 12, 40, group=40, dtype=torch.float64)
    made = asked.values(feedback(asked, damped_factors(asked.hessian, 0.01)).quantized())
    assert torch.allclose(made, gptq(asked.weight, inputs, bits), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["q4_k", "int4", "mxfp4"])
def test_scales_are_found_on_weights_that_have_every_earlier_error(name):
    # Column by column, with no block of columns that is brought up to date at once.
    asked, _ = layer_to_round(name, 8, 512, group=64, dtype=torch.float64)
    upper = damped_factors(asked.hessian, 0.01).upper
    columns = FormatColumns(asked, torch.empty_like(asked.weight.T.contiguous()), asked.importance)
    rest = asked.weight.T.contiguous().clone()
    for j in range(len(rest)):
        column = rest[j].clone()
        rest[j] = columns.rounded(j, column, torch.zeros(8, dtype=torch.bool), rest[j:])
        rest[j + 1 :] -= torch.outer(upper[j, j + 1 :], (column - rest[j]) / upper[j, j])
    made = asked.values(feedback(asked, damped_factors(asked.hessian, 0.01)).quantized())
    assert torch.allclose(made, asked.values(columns.quantized()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "q6_k", "iq4_xs", "q5_1", "mxfp4", "mxfp8", "int3", "int4_asym"])
def test_each_descent_lowers_the_error_of_the_layer(name):
    asked, _ = layer_to_round(name)
    factors = damped_factors(asked.hessian, 0.01)
    errors = [asked.error(feedback(asked, factors, descents).quantized()) for descents in range(4)]
    assert errors == sorted(errors, reverse=True) and errors[1] < 0.97 * errors[0]


def test_a_descent_moves_each_column_to_its_best_place_given_all_others():
    asked, _ = layer_to_round("int4", 4, 48, dtype=torch.float64)
    columns = feedback(asked, damped_factors(asked.hessian, 0.01), 50)
    hessian = asked.hessian.clone()
    hessian.diagonal().add_(0.001 * hessian.diagonal().mean())
    change = columns.values().T - asked.weight
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
        asked, _ = layer_to_round(name, 8, 256, seed)
        made = round_layer(asked)
        assert asked.error(made.quantized) == made.error <= made.error_nearest == asked.error(asked.nearest())
        if name != "int2":
            assert made.rounding == FEEDBACK and made.error < 0.9 * made.error_nearest


def test_feedback_that_is_worse_than_nearest_is_not_taken_and_the_log_says_so(caplog, monkeypatch):
    asked, _ = layer_to_round("q4_k")
    worse = LayerToRound("q4_k", asked.weight + 1, asked.hessian, asked.form, asked.group)
    monkeypatch.setattr("bitplan.rounding.layer.feedback", lambda layer, *how: feedback(worse, *how))
    made = round_layer(asked)
    assert made.rounding == NEAREST and made.error == made.error_nearest and "layer error" in made.why
    assert torch.equal(made.quantized.parts["data"], asked.nearest().parts["data"])
    assert len(caplog.records) == 1 and "q4_k: rounded to nearest" in caplog.text


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_layer_aims_at_the_least_squares_weight_for_the_outputs_between_its_own_and_the_references(share):
    plain, _ = layer_to_round("q4_k", 6, 256, dtype=torch.float64)
    generator = torch.Generator().manual_seed(9)
    inputs, noise = (torch.randn(1024, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    reference = inputs + 0.1 * noise
    asked = replace(plain, hessian=2 / len(inputs) * inputs.T @ inputs)
    cross = CrossMoments(0, torch.zeros(256, 256, dtype=torch.float64))
    for some in range(0, len(inputs), 256):
        cross.add_(inputs[some : some + 256], reference[some : some + 256])
    layer = replace(asked, cross=cross.matrix, share=share)
    aimed = layer.aimed(damped_factors(asked.hessian, 1e-9))
    outputs = ((1 - share) * inputs + share * reference) @ asked.weight.T
    torch.testing.assert_close(aimed.weight, torch.linalg.lstsq(inputs, outputs).solution.T, rtol=1e-5, atol=1e-6)


def test_a_layer_rounded_towards_the_reference_is_judged_by_that_and_falls_back_to_the_nearest_of_its_own_weight(
    monkeypatch,
):
    asked, _ = layer_to_round("q4_k")
    noise = 0.02 * torch.randn(512, 512, generator=torch.Generator().manual_seed(3))
    layer = replace(asked, cross=noise, share=0.5)
    made, aimed = round_layer(layer), layer.aimed(damped_factors(asked.hessian, asked.damping))
    assert made.rounding == FEEDBACK and made.error == pytest.approx(aimed.error(made.quantized))
    assert made.error_nearest == pytest.approx(aimed.error(asked.nearest()))
    worse = replace(asked, weight=asked.weight + 1)
    monkeypatch.setattr("bitplan.rounding.layer.feedback", lambda layer, *how: feedback(worse, *how))
    assert torch.equal(round_layer(layer).quantized.parts["data"], asked.nearest().parts["data"])


def test_a_hessian_that_is_a_little_indefinite_is_damped_more(caplog):
    asked, _ = layer_to_round("q4_k")
    low, vectors = torch.linalg.eigh(asked.hessian)
    low[0] = -0.05 * asked.hessian.diagonal().mean()
    made = round_layer(LayerToRound("q", asked.weight, vectors @ torch.diag(low) @ vectors.T, asked.form, asked.group))
    assert made.rounding == FEEDBACK and made.damping == pytest.approx(0.1)
    assert len(caplog.records) == 1 and "q: its Hessian is not positive definite; damped by 0.1" in caplog.text


def test_a_hessian_that_no_damping_repairs_leaves_nearest_with_one_line_in_the_log(caplog):
    asked, _ = layer_to_round("q4_k")
    hessian = asked.hessian.clone()
    hessian[0, 1] = hessian[1, 0] = 1e6
    made = round_layer(LayerToRound("q", asked.weight, hessian, asked.form, asked.group))
    assert made.rounding == NEAREST and made.damping is None and "not positive definite" in made.why
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_layer_that_no_token_reached_is_rounded_to_nearest_without_importance(caplog):
    asked, _ = layer_to_round("q4_k")
    made = round_layer(LayerToRound("q", asked.weight, torch.zeros_like(asked.hessian), asked.form, asked.group))
    plain = asked.form.quantize(asked.weight, asked.group, None)
    assert made.rounding == NEAREST and torch.equal(made.quantized.parts["data"], plain.parts["data"])
    assert "no token reached it" in caplog.text


def test_inputs_that_are_not_finite_are_refused():
    asked, _ = layer_to_round("q4_k")
    with pytest.raises(UserError, match="NaN or infinite"):
        round_layer(LayerToRound("q", asked.weight, asked.hessian * float("nan"), asked.form, asked.group))


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "q6_k", "iq4_xs", "q4_0", "mxfp4", "int3_asym"])
def test_columns_without_input_take_no_part_and_stay_near_their_weights(name):
    asked, inputs = layer_to_round(name)
    inputs[:, 40:140] = 0
    hessian = 2 / len(inputs) * inputs.T @ inputs
    dead = LayerToRound(name, asked.weight, hessian, asked.form, asked.group)
    made = round_layer(dead)
    values = dead.values(made.quantized)
    assert made.rounding == FEEDBACK and torch.isfinite(values).all()
    # A weight that no token has used is still what it was: another text may use it.
    change = (values - asked.weight)[:, 40:140].square().mean() / asked.weight.square().mean()
    assert change < {"q2_k": 0.2, "int3_asym": 0.1}.get(name, 0.03)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "int4", "int4_asym"])
@pytest.mark.parametrize("columns", [33, 80, 17])
def test_rows_that_are_no_multiple_of_the_block_are_rounded_whole(name, columns):
    asked, _ = layer_to_round(name, 8, columns)
    made = round_layer(asked)
    whole = asked.nearest()
    assert made.quantized.shape == (8, columns)
    assert {part: value.shape for part, value in made.quantized.parts.items()} == {
        part: value.shape for part, value in whole.parts.items()
    }
    assert made.error <= made.error_nearest and asked.values(made.quantized).shape == (8, columns)


def test_a_weight_of_zeros_stays_zero():
    for name in WITH_CODES:
        asked, _ = layer_to_round(name, 8, 256)
        made = round_layer(LayerToRound(name, torch.zeros(8, 256), asked.hessian, asked.form, asked.group))
        assert made.error == 0 and not asked.values(made.quantized).any(), name


@pytest.mark.parametrize("name", ["q4_k", "mxfp6_e3m2", "int5_asym"])
def test_sizes_are_those_of_rounding_to_nearest(name):
    asked, _ = layer_to_round(name)
    made, plain = round_layer(asked).quantized, asked.nearest()
    assert made.nbytes == plain.nbytes and made.parts.keys() == plain.parts.keys()
    assert all(made.parts[key].dtype == plain.parts[key].dtype for key in made.parts)


# --------------------------------------------------------------------------------------------------------------- tuning


def found_by_feedback(name: str, rows: int = 24):
    asked, inputs = layer_to_round(name, rows, 256)
    return asked, inputs, feedback(asked, damped_factors(asked.hessian, 0.01))


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


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "iq4_xs", "mxfp4", "int4_asym"])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_tuning_lowers_the_error_of_a_blocks_output_and_its_codes_give_the_error_that_it_returns(name, kind):
    asked, inputs, columns = found_by_feedback(name)
    module = nn.Linear(256, 24, bias=False) if kind == "Linear" else Conv1D(24, 256)
    stored = (lambda values: values.contiguous()) if kind == "Linear" else (lambda values: values.T.contiguous())
    hidden = inputs[:512].reshape(8, 64, 256)

    def forward(states):
        return nn.functional.silu(module(states) * 4)

    # Not the layer's own outputs: those that the full-precision model has, on inputs of its own.
    module.weight = nn.Parameter(stored(asked.weight))
    target = forward(hidden + 0.3 * torch.roll(hidden, 1, 2)).detach()
    held = columns.elements.clone()
    before, after = tune_({"l": module}, {"l": columns}, hidden, target, forward, TuningSettings(30, 512))
    assert after < 0.97 * before and not torch.equal(columns.elements, held)
    module.weight = nn.Parameter(stored(asked.values(columns.quantized())))
    assert error_of(forward(hidden), target).item() == pytest.approx(after, rel=1e-4)


def test_tuning_that_does_not_help_leaves_what_feedback_has_found():
    asked, inputs, columns = found_by_feedback("q4_k")
    module, held = nn.Linear(256, 24, bias=False), columns.elements.clone()
    hidden = inputs[:512].reshape(8, 64, 256)
    target = (hidden @ asked.weight.T).detach()
    far = TuningSettings(2, 64, reach=5.0)
    before, after = tune_({"l": module}, {"l": columns}, hidden, target, module.forward, far)
    assert before < after and torch.equal(columns.elements, held)
    assert all(far.rate(step) > 0 for step in range(2)) and sum(map(far.rate, range(2))) == pytest.approx(5.0)


def test_an_error_counts_by_the_size_of_its_token():
    target = torch.tensor([[1.0, 1.0], [100.0, 100.0]])
    assert error_of(target * 1.1, target).item() == pytest.approx(0.01, rel=1e-4)
    assert error_of(target + torch.tensor([[0.0, 0.0], [10.0, 10.0]]), target).item() == pytest.approx(0.005, rel=1e-4)


def test_every_window_is_seen_before_one_is_seen_again():
    seen = torch.cat(list(_batches(6, 100, TuningSettings(3, 250))))
    assert sorted(seen.tolist()) == list(range(6))
    assert [len(chosen) for chosen in _batches(2, 100, TuningSettings(3, 1000))] == [2, 2, 2]
