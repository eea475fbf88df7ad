"""SparseGPT on one layer: equal to the published algorithms, exact counts, widths within their target, hard cases."""

import copy
import importlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bitplan.core.errors import UserError
from bitplan.rounding.channel_grid import Quantizer
from bitplan.search.sparsegpt.channel_bits import BIT_OPTIONS, by_budget, by_optimum, by_quantile
from bitplan.search.sparsegpt.layer import ChannelSettings, SparseGPT, rounding_errors
from bitplan.search.sparsegpt.report import QuantizationStats
from bitplan.search.sparsegpt.scores import WEIGHTS, column_scores
from bitplan.statistics.hessian import InputMoments
from tests.unit.search.published_algorithms import damped, gptq, int_rows, sparsegpt

ROWS, COLUMNS, TOKENS = 12, 20, 64
METHODS = ("quantile", "budget", "optimal")


def made_layer(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> tuple[nn.Linear, torch.Tensor]:
    """A layer in double precision, and correlated inputs of columns of unlike sizes."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(columns, rows, bias=False).to(torch.float64)
    layer.weight.data = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) + 2 * torch.eye(columns)
    inputs = torch.randn(TOKENS, columns, generator=generator, dtype=torch.float64) @ mixing
    return layer, inputs * torch.linspace(0.2, 2.0, columns, dtype=torch.float64)


def compressed(layer: nn.Module, inputs: torch.Tensor, settings: ChannelSettings | None = None, quantizer=None, **how):
    gpt = SparseGPT(layer, "layer_0", QuantizationStats(), settings)
    gpt.quantizer = quantizer
    gpt.add_batch(inputs, layer(inputs))
    return gpt.fasterprune(**how)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("blocksize", [1, 7, 128])
def test_one_width_without_sparsity_is_gptq(bits, blocksize):
    layer, inputs = made_layer()
    wanted = gptq(layer.weight.data, inputs, bits)
    made = compressed(layer, inputs, quantizer=Quantizer(bits), bit_allocation_method="uniform", blocksize=blocksize)
    torch.testing.assert_close(made.values, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.weight.data, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("blocksize", [4, 7, 128])
@pytest.mark.parametrize("how", [{"quantizer": None}, {"quantizer": Quantizer(16)}])
def test_sixteen_bits_are_sparsegpt(sparsity, blocksize, how):
    layer, inputs = made_layer()
    wanted = sparsegpt(layer.weight.data, inputs, sparsity, blocksize)
    made = compressed(layer, inputs, sparsity=sparsity, blocksize=blocksize, **how)
    torch.testing.assert_close(made.values, wanted, rtol=0, atol=1e-10)
    assert int((made.values == 0).sum()) == math.floor(sparsity * ROWS * COLUMNS)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.29, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("method", METHODS)
def test_exactly_the_share_is_pruned_and_stays_zero_through_quantization(sparsity, method):
    layer, inputs = made_layer(33, 45)
    made = compressed(
        layer, inputs, quantizer=Quantizer(4), sparsity=sparsity, target_avg_bits=4.0, bit_allocation_method=method,
        blocksize=16,
    )  # fmt: skip
    assert int(made.pruned.sum()) == math.floor(sparsity * 33 * 45)
    assert not made.values[made.pruned].any()


@pytest.mark.parametrize("quantizer", [Quantizer(4), Quantizer(4, sym=False), Quantizer(16), Quantizer(4, mse=True)])
def test_patterns_hold_in_every_row(quantizer):
    layer, inputs = made_layer(16, 24)
    made = compressed(layer, inputs, quantizer=quantizer, prunen=2, prunem=4, blocksize=8)
    assert (made.pruned.view(16, 6, 4).sum(2) == 2).all() and not made.values[made.pruned].any()


@pytest.mark.parametrize("sym", [True, False])
def test_the_values_are_the_codes_of_the_channels_widths(sym):
    layer, inputs = made_layer(16, 24)
    made = compressed(layer, inputs, quantizer=Quantizer(4, sym=sym, group_size=8), target_avg_bits=4.0)
    for j, width in enumerate(made.widths.tolist()):
        low, high = made.grid.limits(width)
        assert low <= made.codes[:, j].min() and made.codes[:, j].max() <= high
        option = made.grid.widths.index(width)
        again = made.grid.values(made.codes[:, j].double(), option, j // 8)
        assert torch.equal(again, made.values[:, j])


@pytest.mark.parametrize("options", [BIT_OPTIONS, (2, 4, 8), (2, 3, 4, 5, 6, 7, 8), (3, 8)])
@pytest.mark.parametrize("channels", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("target", [2.0, 2.5, 3.0, 3.3, 4.0, 4.6, 5.0, 7.9, 8.0])
def test_both_allocations_hold_the_target_to_one_channel(options, channels, target):
    if target < min(options):
        pytest.skip("out of reach")
    scores = np.random.default_rng(channels).lognormal(size=channels)
    largest_step = max(np.diff(options))
    for widths in (by_quantile(scores, options, target), by_budget(scores, options, target)):
        room = target * channels - widths.sum()
        assert -1e-9 <= room < largest_step or (widths == max(options)).all()
        assert set(widths) <= set(options)
        # The more important of two channels never has fewer bits.
        assert (np.diff(widths[np.argsort(scores, kind="stable")]) >= 0).all()


def test_without_a_target_every_width_has_a_fifth_of_the_channels_and_the_average_is_four_and_six_tenths():
    widths = by_quantile(np.arange(100.0), BIT_OPTIONS, None)
    assert widths.mean() == pytest.approx(4.6) and [int((widths == b).sum()) for b in BIT_OPTIONS] == [20] * 5
    assert (by_quantile(np.arange(10.0), (2, 4, 8), None, (0.3, 0.7)) == [2] * 3 + [4] * 4 + [8] * 3).all()


def brute_force(table: np.ndarray, options: tuple[int, ...], budget: float) -> float:
    best = {0: 0.0}
    for row in table:
        step: dict[int, float] = {}
        for used, cost in best.items():
            for error, width in zip(row, options, strict=True):
                if used + width <= budget + 1e-9:
                    step[used + width] = min(step.get(used + width, math.inf), cost + error)
        best = step
    return min(best.values())


@pytest.mark.parametrize("seed", range(10))
def test_the_optimal_widths_have_the_least_weighted_error(seed):
    generator = np.random.default_rng(seed)
    errors = generator.random((9, 5)) * 4.0 ** -np.asarray(BIT_OPTIONS)
    scores, target = generator.random(9), generator.choice([2.5, 3.0, 4.0, 5.2])
    widths = by_optimum(scores, errors, BIT_OPTIONS, target)
    found = sum(score * row[BIT_OPTIONS.index(w)] for score, row, w in zip(scores, errors, widths, strict=True))
    assert widths.sum() <= target * 9
    assert found == pytest.approx(brute_force(scores[:, None] * errors, BIT_OPTIONS, target * 9), rel=1e-9)


def test_rounding_errors_are_those_of_each_width():
    layer, _ = made_layer()
    weight = layer.weight.data
    errors = rounding_errors(weight, Quantizer(4).grid(weight, BIT_OPTIONS))
    for option, bits in enumerate(BIT_OPTIONS):
        rounded = torch.stack([int_rows(weight, bits)(column) for column in weight.T], dim=1)
        np.testing.assert_allclose(errors[:, option], (weight - rounded).square().sum(0).numpy(), rtol=1e-9)


def test_the_five_scores_are_those_of_their_formulas():
    layer, inputs = made_layer()
    moments = InputMoments.empty(COLUMNS, inputs.device, torch.float64)
    moments.add_(inputs)
    diagonal = torch.linalg.inv(damped(inputs, 0.01)).diagonal()
    scores = column_scores(layer.weight.data, moments, diagonal)
    weight, absolute = layer.weight.data, inputs.abs().mean(0)
    wanted = {
        "activation": absolute,
        "hessian": 1 / diagonal,
        "weight": weight.abs().mean(0),
        "output": (weight.square().mean(0) * absolute.square()).sqrt(),
        "stability": inputs.var(0, correction=0),
    }
    assert scores.keys() == WEIGHTS.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(scores[name], values / values.mean(), rtol=1e-10, atol=0)


def test_a_channel_that_others_cannot_replace_scores_higher():
    # Columns 0 and 1 are nearly the same: each can make up for the other. Column 2 stands alone.
    inputs = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] = inputs[:, 0] + 0.01 * inputs[:, 1]
    inverse = torch.linalg.inv(damped(inputs, 1e-6)).diagonal()
    assert 1 / inverse[2] > 100 / inverse[0]


@pytest.mark.parametrize("sizes", [(64,), (1, 63), (13, 50, 1), (32, 32)])
def test_moments_do_not_depend_on_how_tokens_come_in_batches(sizes):
    _, inputs = made_layer()
    moments = InputMoments.empty(COLUMNS, inputs.device, torch.float64)
    for batch in reversed(inputs.split(sizes)):
        moments.add_(batch[None])
    torch.testing.assert_close(moments.hessian, 2 / TOKENS * inputs.T @ inputs)
    torch.testing.assert_close(moments.variance, inputs.var(0, correction=0))
    torch.testing.assert_close(moments.mean_abs, inputs.abs().mean(0))


def test_variance_survives_a_mean_that_is_far_from_zero():
    inputs = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) + 4096.0
    moments = InputMoments.empty(2, inputs.device)
    for batch in inputs.split(100):
        moments.add_(batch)
    torch.testing.assert_close(moments.variance, inputs.double().var(0, correction=0), rtol=1e-9, atol=0)


def output_error(before: torch.Tensor, after: torch.Tensor, inputs: torch.Tensor) -> float:
    return ((inputs @ (before - after).T).square().mean() / (inputs @ before.T).square().mean()).item()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_columns_that_make_up_for_each_other_lose_less_than_rounding_to_nearest(bits):
    errors = {}
    for compensate in (True, False):
        layer, inputs = made_layer(64, 64)
        before = layer.weight.data.clone()
        compressed(layer, inputs, quantizer=Quantizer(bits), bit_allocation_method="uniform", compensate=compensate)
        errors[compensate] = output_error(before, layer.weight.data, inputs)
    assert errors[True] < errors[False]


@pytest.mark.parametrize("percdamp", [0.0, 1e-9])
def test_a_constant_input_is_told_in_one_line_with_the_layers_name(percdamp, caplog):
    layer = nn.Linear(64, 8, bias=False)
    gpt = SparseGPT(layer, "blocks.3.down")
    gpt.add_batch(torch.ones(40, 64))
    gpt.fasterprune(0.5, percdamp=percdamp)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("blocks.3.down: its Hessian has no Cholesky factor; damped by")


def test_inputs_that_are_not_finite_name_the_layer():
    gpt = SparseGPT(nn.Linear(8, 4, bias=False), "blocks.1.up")
    gpt.add_batch(torch.full((5, 8), math.inf))
    with pytest.raises(UserError, match="ROUNDING-INPUTS-NOT-FINITE"):
        gpt.fasterprune(0.5)


def test_dead_columns_become_zero_and_the_others_are_not_harmed():
    layer, inputs = made_layer()
    inputs[:, [3, 7]] = 0.0
    before = layer.weight.data.clone()
    made = compressed(layer, inputs, quantizer=Quantizer(8), bit_allocation_method="uniform")
    assert not made.values[:, [3, 7]].any() and output_error(before, made.values, inputs) < 1e-3


@pytest.mark.parametrize("method", [*METHODS, "uniform"])
@pytest.mark.parametrize("sparsity", [0.0, 0.99])
def test_a_layer_of_zeros_stays_one(method, sparsity):
    layer, inputs = made_layer()
    layer.weight.data.zero_()
    how = {"target_avg_bits": 4.0, "bit_allocation_method": method, "sparsity": sparsity}
    assert not compressed(layer, inputs, quantizer=Quantizer(4), **how).values.any()


@pytest.mark.parametrize("method", [*METHODS, "uniform"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.99])
def test_one_column_one_row_and_one_token_work(method, sparsity):
    for rows, columns, tokens in ((5, 1, 64), (1, 5, 64), (5, 5, 1), (1, 1, 1)):
        layer, inputs = made_layer(rows, columns)
        how = {"target_avg_bits": 4.0, "bit_allocation_method": method, "sparsity": sparsity}
        made = compressed(layer, inputs[:tokens], quantizer=Quantizer(4), **how)
        assert made.values.isfinite().all() and int(made.pruned.sum()) == math.floor(sparsity * rows * columns)


def test_a_layer_that_no_token_reached_is_rounded_to_nearest():
    layer, inputs = made_layer()
    before = layer.weight.data.clone()
    made = compressed(layer, inputs[:0], quantizer=Quantizer(4), bit_allocation_method="uniform")
    wanted = torch.stack([int_rows(before, 4)(column) for column in before.T], dim=1)
    torch.testing.assert_close(made.values, wanted, rtol=0, atol=0)


def test_a_conv1d_is_compressed_as_the_linear_layer_of_its_transpose():
    layer, inputs = made_layer()
    turned = Conv1D(ROWS, COLUMNS).to(torch.float64)
    turned.weight.data = layer.weight.data.T.contiguous()
    how = {"quantizer": Quantizer(4), "target_avg_bits": 4.0, "sparsity": 0.5}
    linear, conv = compressed(layer, inputs, **how), compressed(turned, inputs, **how)
    assert torch.equal(linear.values, conv.values) and torch.equal(turned.weight.data.T, layer.weight.data)


def test_half_precision_layers_are_computed_in_single_precision_and_keep_their_dtype():
    layer, inputs = made_layer()
    layer = layer.to(torch.bfloat16)
    made = compressed(layer, inputs.to(torch.bfloat16), quantizer=Quantizer(4), target_avg_bits=4.0)
    assert made.values.dtype == torch.float32 and layer.weight.dtype == torch.bfloat16


def test_the_example_of_the_document_prints_its_summary(capsys):
    model = nn.Sequential(*(nn.Linear(2048, 16) for _ in range(2)))
    stats = QuantizationStats()
    for number, layer in enumerate(model):
        sparse = SparseGPT(layer, layer_name=f"layer_{number}", stats_collector=stats)
        sparse.quantizer = Quantizer()
        sparse.quantizer.configure(bits=4, perchannel=True, sym=True)
        for _ in range(3):
            inp = torch.randn(2, 50, 2048)
            sparse.add_batch(inp, layer(inp))
        sparse.fasterprune(sparsity=0.5, target_avg_bits=4.6, bit_allocation_method="quantile")
        sparse.free()
    stats.print_summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["=" * 60, "量化统计摘要 (Quantization Statistics Summary)", "=" * 60]
    assert lines[4] == "总通道数: 4096" and lines[5] == "比特分布:" and "平均比特数: 4.600 bits" in lines
    assert [line[:7] for line in lines[6:11]] == [f"  {b}-bit" for b in BIT_OPTIONS]
    assert lines[6] == "  2-bit:    820 通道 (20.02%)" and lines[-1] == "=" * 60
    assert lines[-4] == "每层统计:" and lines[-3].startswith("  Layer 0: avg=4.60 bits, importance_range=(0.")


def test_debugging_logs_scores_and_widths(caplog):
    layer, inputs = made_layer()
    with caplog.at_level("DEBUG", logger="bitplan.search.sparsegpt"):
        compressed(layer, inputs, quantizer=Quantizer(4), target_avg_bits=4.0)
    assert "hessian" in caplog.text and "importance" in caplog.text and "widths {" in caplog.text


BAD = {
    "a share of all": ({"sparsity": 1.0}, "sparsity"),
    "a pattern that keeps nothing": ({"prunen": 4, "prunem": 4}, "4:4"),
    "blocks that cut patterns": ({"prunen": 2, "prunem": 4, "blocksize": 6}, "blocksize"),
    "an unknown method": ({"bit_allocation_method": "quantil"}, "quantile"),
    "an average out of reach": ({"target_avg_bits": 1.5}, "SPARSEGPT-TARGET.*2 and 8"),
    "half a bit for all": ({"target_avg_bits": 3.5, "bit_allocation_method": "uniform"}, "SPARSEGPT-TARGET"),
    "a budget of nothing": ({"bit_allocation_method": "budget"}, "target_avg_bits"),
    "widths that fall": ({"settings": ChannelSettings((4, 2))}, "SPARSEGPT-BAD-WIDTHS"),
    "too few quantiles": ({"settings": ChannelSettings(quantiles=(0.5,))}, "SPARSEGPT-BAD-QUANTILES.*4 increasing"),
    "an unknown score": ({"settings": ChannelSettings(weights={"hesian": 1.0})}, "hessian"),
    "scores of no weight": ({"settings": ChannelSettings(weights={"hessian": 0.0})}, "SPARSEGPT-BAD-SCORE"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_make_no_sense_are_refused_and_the_layer_is_left_alone(case):
    how, told = BAD[case]
    layer, inputs = made_layer()
    before = layer.weight.data.clone()
    with pytest.raises(UserError, match=told):
        compressed(layer, inputs, quantizer=Quantizer(4), **how)
    assert torch.equal(before, layer.weight.data)


def test_infinite_inputs_are_refused():
    layer, inputs = made_layer()
    inputs[3, 3] = math.inf
    with pytest.raises(UserError, match="SPARSEGPT-NOT-FINITE|ROUNDING-INPUTS-NOT-FINITE"):
        compressed(layer, inputs, quantizer=Quantizer(4), target_avg_bits=4.0)


def test_scores_and_widths_by_themselves_are_those_of_the_compression():
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(32, 16), torch.randn(64, 32)
    gpt = SparseGPT(layer, "layer_0")
    gpt.quantizer = Quantizer(4)
    gpt.add_batch(inputs)
    scores = gpt.compute_importance_scores()
    for method in ("quantile", "budget", "optimal"):
        widths = gpt.allocate_bits(scores, 4.0, method)
        other = SparseGPT(copy.deepcopy(layer), "layer_0", moments=gpt.moments)
        other.quantizer = Quantizer(4)
        made = other.fasterprune(target_avg_bits=4.0, bit_allocation_method=method)
        assert torch.equal(made.scores, scores) and torch.equal(made.widths, widths)


def test_a_whole_block_is_refused_with_the_loop_over_its_layers():
    block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    with pytest.raises(UserError, match="SPARSEGPT-NO-MATRIX") as caught:
        SparseGPT(block, "layer_0")
    assert "for name, part in block.named_modules()" in str(caught.value)


def test_debug_lines_hold_plain_numbers(caplog):
    gpt = SparseGPT(torch.nn.Linear(8, 4), "layer_0")
    gpt.quantizer = Quantizer(4)
    gpt.add_batch(torch.randn(16, 8))
    with caplog.at_level("DEBUG", logger="bitplan.search.sparsegpt"):
        gpt.fasterprune(target_avg_bits=4.0)
    assert "widths {" in caplog.text and not any(word in caplog.text for word in ("np.", "tensor(", "int64"))


def test_the_originals_names_are_there():
    from quant import Quantizer as theirs

    assert theirs is Quantizer and importlib.import_module("sparsegpt_enhanced").DEBUG is False
