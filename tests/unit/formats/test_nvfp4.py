"""NVFP4: parts and values equal to those of the compressed-tensors library, a scale of the matrix, GGUF's variant."""

import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import dequantize as library_dequantize
from compressed_tensors.quantization.lifecycle.forward import quantize as library_quantize
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

from bitplan.core.errors import UserError
from bitplan.formats.base import Quantized
from bitplan.formats.mx import E2M1
from bitplan.formats.nvfp4 import from_gguf
from bitplan.formats.pairs import parse_pair
from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer
from bitplan.plans.plan import expand

NAMES = ("nvfp4", "nvfp4_pow2")


def weights(rows: int = 32, columns: int = 128, seed: int = 0) -> torch.Tensor:
    """Rows of sizes from 0.001 to 10, with a row and a block of zeros."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    values *= torch.logspace(-3, 1, rows).unsqueeze(1)
    values[0], values[3, :16] = 0.0, 0.0
    return values


def library_values(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scale of the matrix, scales of blocks, elements, values), as compressed-tensors computes them."""
    args = preset_name_to_scheme("NVFP4A16", ["Linear"]).weights
    whole, blocks = generate_gparam(values.min(), values.max()), values.reshape(len(values), -1, 16)
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=whole)
    elements = library_quantize(values, scale, zero, args, global_scale=whole)
    return (
        whole,
        scale,
        elements,
        library_dequantize(elements, scale, args=args, global_scale=whole, dtype=torch.float32),
    )


def test_parts_and_values_are_those_of_the_library_bit_for_bit():
    values, form = weights(), FORMATS["nvfp4"]
    quantized = form.quantize(values, 16, None)
    whole, scale, elements, expected = library_values(values)
    assert torch.equal(quantized.parts["global_scale"], whole)
    assert torch.equal(quantized.parts["scale"].to(torch.float32), scale)
    assert torch.equal(quantized.parts["elements"].reshape(elements.shape), elements)
    assert torch.equal(form.dequantize(quantized, 16), expected)


def test_a_published_checkpoints_parts_decode_by_hand():
    # ModelOpt stores 1 / G: amax / (6 x 448). Here amax is 5.25, so that G is 512.
    elements = torch.tensor([[[6.0, -4.0, 3.0, 2.0, 1.5, -1.0, 0.5, 0.0] * 2]])
    parts = {
        "elements": elements,
        "scale": torch.tensor([[448.0]]).to(torch.float8_e4m3fn),
        "global_scale": torch.tensor([512.0]),
    }
    expected = torch.tensor([[5.25, -3.5, 2.625, 1.75, 1.3125, -0.875, 0.4375, 0.0] * 2])
    for name in NAMES:
        form = FORMATS[name]
        assert torch.equal(form.dequantize(Quantized(parts, (1, 16)), 16), expected)
        assert torch.equal(form.roundtrip(expected), expected)


def test_the_block_with_the_largest_value_keeps_it():
    values = weights()
    quantized = FORMATS["nvfp4"].roundtrip(values)
    place = values.abs().argmax()
    assert quantized.flatten()[place] == pytest.approx(values.flatten()[place].item(), rel=1e-6)


def test_a_scale_of_the_matrix_that_is_a_power_of_two_gives_values_that_bfloat16_holds():
    values = weights()
    quantized = FORMATS["nvfp4_pow2"].quantize(values, 16, None)
    mantissa, _ = torch.frexp(quantized.parts["global_scale"])
    assert mantissa.item() == 0.5
    assert 224 <= quantized.parts["scale"].to(torch.float32).max() <= 448
    back = FORMATS["nvfp4_pow2"].dequantize(quantized, 16)
    assert torch.equal(back.to(torch.bfloat16).to(torch.float32), back)
    theirs = FORMATS["nvfp4"].roundtrip(values)
    assert (back - values).square().sum() == pytest.approx((theirs - values).square().sum().item(), rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zero_and_a_block_with_nan_is_nan(name):
    form = FORMATS[name]
    assert torch.equal(form.roundtrip(torch.zeros(2, 32)), torch.zeros(2, 32))
    values = weights(4, 64)
    expected = form.roundtrip(values)
    for bad in (float("nan"), float("inf")):
        broken = values.clone()
        broken[1, 20] = bad
        quantized = form.roundtrip(broken)
        assert quantized[1, 16:32].isnan().all()
        assert torch.equal(quantized[0], expected[0]) and torch.equal(quantized[1, 32:], expected[1, 32:])


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_a_fitted_format_are_those_of_the_whole_matrix(name):
    form, values = FORMATS[name], weights()
    whole, fitted = form.roundtrip(values), form.fitted(values)
    assert torch.equal(torch.cat([fitted.roundtrip(part) for part in values.split(16, dim=1)], dim=1), whole)
    # With powers of two the scale of the matrix moves the range of the blocks' scales, not the values.
    assert torch.equal(form.roundtrip(values[20:24]), whole[20:24]) == (name == "nvfp4_pow2")
    assert FORMATS["mxfp4"].fitted(values) is FORMATS["mxfp4"]


@pytest.mark.parametrize("name", NAMES)
def test_bits_count_block_scales_and_one_scale_of_the_matrix(name):
    form = FORMATS[name]
    assert form.bits_per_value() == form.bits_per_value(64) == 4.5
    assert form.bits_of((3, 64)) == 3 * 64 * 4.5 + 32


@pytest.mark.parametrize("name", NAMES)
def test_packed_parts_have_the_same_values_in_a_byte_each(name):
    form = FORMATS[name]
    quantized = form.quantize(weights(), 16, None)
    packed = form.pack(quantized)
    assert packed.parts["elements"].element_size() == 1
    assert torch.equal(form.dequantize(packed, 16), form.dequantize(quantized, 16))


def test_inputs_and_embeddings_and_other_groups_are_refused_by_name():
    with pytest.raises(ValueError, match="nvfp4 is for weights alone"):
        parse_pair("nvfp4/nvfp4")
    with pytest.raises(ValueError, match="nvfp4 has no groups"):
        parse_pair("nvfp4_g32")
    layers = [
        Layer("lm_head", "lm_head", (8, 64), -1, "", True),
        Layer("model.layers.0.mlp.up_proj", "mlp_up", (8, 64), 0, "", False),
    ]
    with pytest.raises(UserError, match=r"PLAN-WEIGHTS-ONLY.*nvfp4"):
        expand({"default": {"wq": "nvfp4", "aq": "nvfp4"}}, layers)
    entry = {"pattern": "lm_head", "wq": "nvfp4", "embeddings": True}
    with pytest.raises(UserError, match=r"PLAN-EMBEDDINGS-FORMAT.*rows"):
        expand({"overrides": [entry]}, layers)


def test_rows_that_are_no_multiple_of_16_stay_at_16_bits():
    layers = [Layer("model.layers.0.mlp.up_proj", "mlp_up", (8, 40), 0, "", False)]
    assert expand({"default": {"wq": "nvfp4"}}, layers).of(layers[0].name).wq == "bf16"


def test_ggufs_nvfp4_is_the_same_format_with_a_scale_of_one():
    form, values = FORMATS["gguf_nvfp4"], weights()
    quantized = form.quantize(values, 64, None)
    parts = from_gguf(quantized.parts["data"], quantized.shape)
    assert set(parts.parts["elements"].abs().unique().tolist()) <= {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, E2M1.largest}
    assert torch.equal(FORMATS["nvfp4"].dequantize(parts, 16), form.dequantize(quantized, 64))
