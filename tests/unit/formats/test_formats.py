"""Formats: element values, whole blocks, exact sizes, and the values of the OCP specification computed by hand."""

import math
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from bitplan.core.errors import UserError
from bitplan.formats import mx
from bitplan.formats.base import Format, Quantized, blocks_of, rows_of
from bitplan.formats.describe import sqnr
from bitplan.formats.facts import TYPE_NAMES
from bitplan.formats.ggml import block_of
from bitplan.formats.sizes import SIZES
from bitplan.formats.table import FORMATS, get_format
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, average_bits, expand
from bitplan.runtimes.gguf.file import TensorRecord, choose_type, file_type_of
from bitplan.runtimes.gguf.format_types import file_type, is_exact
from tests.unit.formats.values import ASYMMETRIC, BRAIN_SCALES, SYMMETRIC, normal, rows

ELEMENTS = {
    "mxfp4": mx.E2M1,
    "mxfp6_e2m3": mx.E2M3,
    "mxfp6_e3m2": mx.E3M2,
    "mxfp8": mx.E4M3,
    "mxfp8_e5m2": mx.E5M2,
}
MX = [name + suffix for name in ELEMENTS for suffix in ("", "_rceil", "_mse")]

CASTS = [
    (mx.E2M1, ml_dtypes.float4_e2m1fn),
    (mx.E2M3, ml_dtypes.float6_e2m3fn),
    (mx.E3M2, ml_dtypes.float6_e3m2fn),
    (mx.E4M3, ml_dtypes.float8_e4m3fn),
    (mx.E5M2, ml_dtypes.float8_e5m2),
]


def codes_of(dtype: type) -> torch.Tensor:
    """Every finite value of a small float."""
    codes = np.arange(2 ** {"4": 4, "6": 6, "8": 8}[np.dtype(dtype).name.split("_")[0][-1]], dtype=np.uint8)
    values = torch.from_numpy(codes.view(dtype).astype(np.float32))
    return values[torch.isfinite(values)]


@pytest.mark.parametrize(("element", "dtype"), CASTS, ids=lambda x: getattr(x, "__name__", ""))
def test_every_element_rounds_as_the_cast_of_ml_dtypes_does(element, dtype):
    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(200_000, generator=generator) * torch.exp2(
        torch.randint(-12, 9, (200_000,), generator=generator).float()
    )
    exact = codes_of(dtype).sort().values
    ties = (exact[1:] + exact[:-1]) / 2
    values = torch.cat([spread, exact, ties]).clamp(-element.largest, element.largest)
    assert np.array_equal(
        mx.round_to_element(values.clone(), element).numpy(), values.numpy().astype(dtype).astype(np.float32)
    )


def test_mxfp4_block_worked_out_from_the_specification():
    # amax 5 -> floor(log2 5) = 2, minus emax 2 -> scale 2^0. E2M1 holds 0 .5 1 1.5 2 3 4 6; ties go to the even code:
    # 0.25 -> 0, 0.75 -> 1, 1.75 -> 2, 2.5 -> 2, 3.5 -> 4, 5 -> 4.
    values = [5.0, -0.25, 0.75, 1.75, 2.5, -3.5, 0.1, 1.2]
    expected = [4.0, -0.0, 1.0, 2.0, 2.0, -4.0, 0.0, 1.0]
    assert FORMATS["mxfp4"].roundtrip(rows(values))[0, :8].tolist() == expected


def test_mxfp4_scale_follows_the_largest_value_of_the_block():
    # amax 0.07: floor(log2) = -4, scale 2^-6 = 0.015625; 0.07 / 2^-6 = 4.48 -> 4 -> 0.0625; 0.02 -> 1.28 -> 1.5 -> 0.0234375.
    assert FORMATS["mxfp4"].roundtrip(rows([0.07, 0.02]))[0, :2].tolist() == [0.0625, 0.0234375]


def test_mxfp8_saturates_instead_of_overflowing():
    # amax 500: floor(log2) = 8, minus emax 8 -> scale 1; 500 is over 448, the largest E4M3.
    assert FORMATS["mxfp8"].roundtrip(rows([500.0, 1.0]))[0, :2].tolist() == [448.0, 1.0]


def test_mxfp8_keeps_subnormals_of_the_element():
    # scale 1 (amax 256 = 2^8); 2^-9 is the smallest subnormal of E4M3, 2^-10 is the tie with 0 and goes to even.
    assert FORMATS["mxfp8"].roundtrip(rows([256.0, 2**-9, 2**-10]))[0, :3].tolist() == [256.0, 2**-9, 0.0]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        # amax 7: 2 - emax 2 -> scale 1. Steps of 1/8 below 2, 1/4 below 4, 1/2 below 7.5; ties to the even code.
        (
            "mxfp6_e2m3",
            [7.0, 0.0625, 0.1875, 1.3, 2.125, 3.4, 5.25, -6.8],
            [7.0, 0.0, 0.25, 1.25, 2.0, 3.5, 5.0, -7.0],
        ),
        ("mxfp6_e2m3", [7.9, 1.0], [7.5, 1.0]),
        # amax 24: 4 - emax 4 -> scale 1. Steps of 1/16 below 0.5, then an eighth of the number's power of two, up to 28.
        (
            "mxfp6_e3m2",
            [24.0, 22.0, 9.0, 5.5, 0.3, 0.03125, 0.09375, -1.1],
            [24.0, 24.0, 8.0, 6.0, 0.3125, 0.0, 0.125, -1.0],
        ),
        ("mxfp6_e3m2", [31.0, -1.0], [28.0, -1.0]),
        # amax 57344: 15 - emax 15 -> scale 1. 2 mantissa bits; 2^-16 is the smallest subnormal.
        (
            "mxfp8_e5m2",
            [57344.0, 36864.0, 1.125, 1.375, 2**-16, 2**-17, 3 * 2**-17, -3.3],
            [57344.0, 32768.0, 1.0, 1.5, 2**-16, 0.0, 2**-15, -3.5],
        ),
        ("mxfp8_e5m2", [60000.0, 3.0], [57344.0, 3.0]),
        # amax 7 is over 6: scale 2, so 3.5 -> 4, 0.5 -> 0.5, 0.25 -> 0 times 2.
        ("mxfp4_rceil", [7.0, 1.0, 0.5], [8.0, 1.0, 0.0]),
        ("mxfp4_rceil", [6.0, 1.0, 0.5], [6.0, 1.0, 0.5]),
        # amax 500 is over 448: scale 2, 250 -> 256.
        ("mxfp8_rceil", [500.0, 1.0], [512.0, 1.0]),
        # Under scale 1 the 31 quarters become 0, an error of 31/16; under 1/2 they stay and 4 becomes 3, an error of 1.
        ("mxfp4_mse", [4.0] + [0.25] * 31, [3.0] + [0.25] * 31),
        # Under scale 1 7.5 becomes 6, an error of 9/4; under 2 it becomes 8, an error of 1/4, and 2 stays.
        ("mxfp4_mse", [7.5, 2.0], [8.0, 2.0]),
    ],
)
def test_blocks_worked_out_from_the_specification(name, values, expected):
    assert FORMATS[name].roundtrip(rows(values))[0, : len(expected)].tolist() == expected


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("power", [-90, -3, 0, 5, 90])
def test_rceil_finds_the_exponent_exactly_on_both_sides_of_the_largest_value(name, power):
    amax = torch.tensor(ELEMENTS[name].largest * 2.0**power)
    neighbours = [torch.nextafter(amax, torch.tensor(0.0)), amax, torch.nextafter(amax, torch.tensor(math.inf))]
    blocks = torch.stack(neighbours).reshape(3, 1)
    quantized = FORMATS[f"{name}_rceil"].quantize(blocks, 1, None)
    assert quantized.parts["exponent"].flatten().tolist() == [power, power, power + 1]


@pytest.mark.parametrize("name", ELEMENTS)
def test_rceil_never_saturates_and_takes_no_larger_scale_than_it_must(name):
    values = normal(64, 256) * torch.exp2(normal(64, 1, seed=1) * 20)
    quantized = FORMATS[f"{name}_rceil"].quantize(values, 32, None)
    reach = ELEMENTS[name].largest * torch.exp2(quantized.parts["exponent"].float())
    amax = values.view(64, 8, 32).abs().amax(-1)
    assert (amax <= reach).all() and (amax > reach / 2).all()


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("group", [16, 32, 64])
def test_the_mse_rule_errs_no_more_than_floor_in_any_block(name, group):
    values = normal(64, 256) * torch.exp2(normal(64, 1, seed=1) * 30)
    values[:, ::7] *= 20

    def errors(form: str) -> torch.Tensor:
        return (FORMATS[form].roundtrip(values, group).double() - values).square().view(64, -1, group).sum(-1)

    ours, floor = errors(f"{name}_mse"), errors(name)
    # The rule adds up errors in float32.
    assert (ours <= floor * (1 + 1e-6)).all() and (ours < floor).any()


@pytest.mark.parametrize("name", ELEMENTS)
def test_the_mse_rule_keeps_the_exponent_of_floor_where_errors_are_equal(name):
    largest = 2.0 ** ELEMENTS[name].emax
    values = rows([largest, -largest / 2, largest / 2])
    assert FORMATS[f"{name}_mse"].quantize(values, 32, None).parts["exponent"].item() == 0


def test_importance_decides_which_error_the_mse_rule_avoids():
    values, importance = rows([4.0] + [0.25] * 31), torch.ones(32)
    importance[0] = 1000.0
    quantized = FORMATS["mxfp4_mse"].roundtrip(values, importance=importance)
    assert quantized[0, 0] == 4.0 and not quantized[0, 1:].any()


@pytest.mark.parametrize("name", ["mxfp4", "mxfp4_rceil"])
def test_importance_changes_nothing_where_the_rule_compares_no_errors(name):
    values = normal(4, 40)
    assert torch.equal(FORMATS[name].roundtrip(values), FORMATS[name].roundtrip(values, importance=normal(40).square()))


def test_importance_covers_a_short_last_block():
    values, importance = normal(8, 40), normal(40, seed=1).square()
    whole = FORMATS["mxfp4_mse"].roundtrip(values, importance=importance)
    last = FORMATS["mxfp4_mse"].roundtrip(values[:, 32:].contiguous(), importance=importance[32:])
    assert torch.equal(whole[:, 32:], last)


def test_a_large_matrix_is_quantized_as_its_rows_are():
    values = normal(600, 1000)
    whole = FORMATS["mxfp4_mse"].roundtrip(values)
    assert values.numel() > 2 * mx.CHUNK_VALUES
    assert torch.equal(whole, torch.cat([FORMATS["mxfp4_mse"].roundtrip(part) for part in values.split(7)]))


@pytest.mark.parametrize("name", MX)
def test_every_mx_value_is_exact_in_bfloat16(name):
    quantized = FORMATS[name].roundtrip(normal(64, 256))
    assert torch.equal(quantized.to(torch.bfloat16).float(), quantized)


@pytest.mark.parametrize(("element", "dtype"), CASTS, ids=lambda x: getattr(x, "__name__", ""))
def test_packing_keeps_every_code_of_an_element(element, dtype):
    values = codes_of(dtype)
    assert torch.equal(values.to(element.storage).float(), values)
    assert values.max() == element.largest and torch.signbit(values.to(element.storage).float()[values == 0]).any()


@pytest.mark.parametrize("name", [*MX, *ASYMMETRIC])
def test_what_is_packed_reads_as_what_was_not_and_takes_less(name):
    form, values = FORMATS[name], normal(32, 200) * torch.exp2(normal(32, 1, seed=1) * 9)
    values[3, 7] = math.nan
    quantized = form.quantize(values, form.block, None)
    packed = form.pack(quantized)
    unpacked = form.dequantize(packed, form.block)
    assert np.array_equal(unpacked.numpy(), form.roundtrip(values).numpy(), equal_nan=True)
    assert packed.nbytes < 1.4 * values.numel()


def test_a_block_of_zeros_stays_zero_and_its_neighbour_is_its_own_block():
    values = torch.zeros(1, 64)
    values[0, 40] = 3.0
    assert torch.equal(FORMATS["mxfp4"].roundtrip(values), values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [*MX, *SYMMETRIC, *ASYMMETRIC, *BRAIN_SCALES])
def test_a_block_that_is_not_finite_is_nan_and_no_other(name, bad):
    values = torch.ones(1, 64)
    values[0, 5] = bad
    quantized = FORMATS[name].roundtrip(values, 32)
    assert quantized[0, :32].isnan().all() and not quantized[0, 32:].isnan().any()


@pytest.mark.parametrize("name", MX)
def test_tiny_and_huge_values_stay_within_the_scales_of_e8m0(name):
    largest = torch.finfo(torch.float32).max
    values = torch.tensor([[1e-45] * 32 + [2e-38] * 32 + [3e38] * 32 + [largest] * 32])
    quantized = FORMATS[name].roundtrip(values)
    assert torch.isfinite(quantized).all() and quantized[0, 64:].min() > 2e38
    assert (quantized[0, :32].abs() <= 2.0**-126).all() and quantized[0, 32:64].tolist() == pytest.approx(
        [2e-38] * 32, rel=0.3
    )


def test_the_last_short_block_of_a_row_is_padded_and_cut_off_again():
    values = torch.randn(3, 40)
    blocks = blocks_of(values, 32)
    assert blocks.shape == (3, 2, 32) and torch.equal(rows_of(blocks, (3, 40)), values)
    assert torch.equal(
        FORMATS["mxfp8"].roundtrip(values)[:, :32], FORMATS["mxfp8"].roundtrip(values[:, :32].contiguous())
    )


@pytest.mark.parametrize("name", [*MX, *SYMMETRIC, *ASYMMETRIC, *BRAIN_SCALES])
def test_zeros_stay_zeros(name):
    assert not FORMATS[name].roundtrip(torch.zeros(2, 200)).any()


@pytest.mark.parametrize("name", [*MX, "int4", "int4_asym"])
@pytest.mark.parametrize("group", [16, 64])
def test_other_groups_are_quantized_each_by_itself_and_counted(name, group):
    form, values = FORMATS[name], normal(4, 128)
    alone = torch.cat([form.roundtrip(part.contiguous(), group) for part in values.split(group, dim=1)], dim=1)
    assert torch.equal(form.roundtrip(values, group), alone)
    assert form.bits_of((4, 128), group) == 4 * (128 * form.element_bits + 128 / group * form.scale_bits)


@pytest.mark.parametrize("name", ["mxfp6_e2m3_mse", "int8_asym"])
def test_activations_are_quantized_along_their_features(name):
    values = normal(2, 5, 64)
    quantized = FORMATS[name].roundtrip(values)
    assert quantized.shape == values.shape
    assert torch.equal(quantized[1, 3], FORMATS[name].roundtrip(values[1, 3]))


def test_mx_and_asymmetric_integers_serve_activations_and_symmetric_ones_do_not():
    serving = {name for name, form in FORMATS.items() if form.for_activations}
    dynamic = {f"int{bits}_{scope}" for bits in (4, 8) for scope in ("token", "tensor")}
    assert serving == {"bf16", "fp16", *MX, *ASYMMETRIC, *dynamic}


@pytest.mark.parametrize(
    ("name", "bits"),
    {
        "mxfp4": 4.25,
        "mxfp8": 8.25,
        "mxfp6_e2m3": 6.25,
        "mxfp6_e3m2_rceil": 6.25,
        "mxfp8_e5m2_mse": 8.25,
        "int4": 4.125,
        "int4_asym": 4.15625,
        "int8_asym": 8.1875,
        "bf16": 16,
        "q2_k": 2.625,
        "q3_k": 3.4375,
        "q4_k": 4.5,
        "q6_k": 6.5625,
        "q8_0": 8.5,
        "q4_1": 5,
        "q5_0": 5.5,
        "q5_1": 6,
        "iq4_nl": 4.5,
        "iq4_xs": 4.25,
    }.items(),
)
def test_bits_count_the_scales(name, bits):
    assert FORMATS[name].bits_per_value() == bits
    assert FORMATS[name].bits_of((4, 256)) == 4 * 256 * bits


def test_bits_of_a_short_last_block_count_a_whole_scale():
    assert FORMATS["mxfp4"].bits_of((2, 40)) == 2 * (40 * 4 + 2 * 8)
    assert FORMATS["int4"].bits_of((1, 64), group_size=32) == 64 * 4 + 2 * 16
    assert FORMATS["int4_asym"].bits_of((3, 200)) == 3 * (200 * 4 + 2 * (16 + 4))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("mxfp4", 18.6, 19.0),
        ("mxfp6_e2m3", 30.7, 31.1),
        ("mxfp8", 30.4, 30.8),
        ("mxfp8_rceil", 31.3, 31.7),
        ("int4", 18.3, 18.9),
        ("int4_asym", 19.6, 20.2),
        ("q8_0", 45.2, 45.6),
        ("iq4_xs", 22.1, 22.6),
        ("iq4_nl", 22.1, 22.6),
    ],
)
def test_signal_to_noise_on_gaussian_data_is_the_known_one(name, low, high):
    values = normal(512, 1024)
    assert low < sqnr(values, FORMATS[name].roundtrip(values)) < high


def test_sizes_that_are_known_without_torch_are_those_of_ggml():
    assert set(SIZES) == set(FORMATS)
    for name, kind in TYPE_NAMES.items():
        values, size = block_of(GGMLQuantizationType[kind])
        assert (SIZES[name].block, SIZES[name].element_bits) == (values, 8 * size / values), name


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(UserError, match="mxfp4"):
        get_format("mxfp5")


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("mxfp4", "MXFP4", "mxfp4 is not a GGUF type, MXFP4 is the closest"),
        ("mxfp4_rceil", "MXFP4", "mxfp4_rceil is not a GGUF type, MXFP4 is the closest"),
        ("mxfp4_mse", "MXFP4", "mxfp4_mse is not a GGUF type, MXFP4 is the closest"),
        ("mxfp6_e3m2", "Q6_K", "mxfp6_e3m2 is not a GGUF type, Q6_K is the closest; blocks of 256 values, not 32"),
        ("mxfp8_e5m2_mse", "Q8_0", "mxfp8_e5m2_mse is not a GGUF type, Q8_0 is the closest"),
        ("int2_asym", "Q2_K", "int2_asym is not a GGUF type, Q2_K is the closest; blocks of 256 values, not 128"),
        ("int4_asym", "Q4_1", "int4_asym is not a GGUF type, Q4_1 is the closest; blocks of 32 values, not 128"),
        ("int5_asym", "Q5_1", "int5_asym is not a GGUF type, Q5_1 is the closest; blocks of 32 values, not 128"),
        ("iq4_xs", "IQ4_XS", ""),
        ("q4_1", "Q4_1", ""),
    ],
)
def test_the_export_says_what_becomes_of_each_format(name, kind, why):
    tensor = SimpleNamespace(name="blk.0.ffn_up.weight", shape=(512, 4))
    choice = choose_type(tensor, LayerPlan(name), FORMATS[name], False, GGMLQuantizationType.F16)
    assert (choice[0].name, choice[1]) == (kind, why)


def test_only_plain_floats_and_gguf_types_are_exact_in_a_gguf():
    exact = {name for name, form in FORMATS.items() if is_exact(form)}
    assert exact == {name for name, form in FORMATS.items() if form.family in ("float", "gguf")}


@pytest.mark.parametrize("kind", sorted({file_type(form) for form in FORMATS.values()}))
def test_a_file_of_any_formats_gguf_type_says_so_in_its_header(kind):
    record = TensorRecord("t", "l", "", "", kind, 1, 1, "")
    assert file_type_of([record]).name.startswith(f"MOSTLY_{kind}")


def test_a_format_of_ones_own_goes_through_plans_bits_and_weights():
    def quantize(values, group, importance=None):
        return Quantized({"quarters": torch.round(values * 4).to(torch.int8)}, tuple(values.shape))

    def dequantize(quantized, group):
        return quantized.parts["quarters"].float() / 4

    mine = Format("mine", "mine", 5, 16, 64, quantize, dequantize, True)
    formats = {**FORMATS, "mine": mine}
    layer = Layer("model.layers.0.mlp.up_proj", "other", (4, 128), 0, "", False)
    info = ModelInfo("", "", "", "", layer.params, (layer,))
    plan = expand({"default": {"wq": "mine", "aq": "mine"}}, info.layers, formats=formats)
    narrow = expand({"default": {"wq": "mine", "group_size": 32}}, info.layers, formats=formats)
    assert average_bits(plan, info, formats).avg_bits == 5 + 16 / 64
    assert average_bits(narrow, info, formats).avg_bits == 5 + 16 / 32
    weight = QuantizedWeights(formats=formats).get(layer.name, torch.full((4, 128), 0.3), plan.of(layer.name))
    assert torch.equal(weight, torch.full((4, 128), 0.25))
