"""Formats: element values, whole blocks, exact sizes, and the values of the OCP specification worked out by hand."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from bitplan.errors import UserError
from bitplan.formats import ggml, mx
from bitplan.formats.base import blocks_of, rows_of
from bitplan.formats.table import FORMATS, format_named

CASTS = [
    (mx.E2M1, ml_dtypes.float4_e2m1fn),
    (mx.E2M3, ml_dtypes.float6_e2m3fn),
    (mx.E3M2, ml_dtypes.float6_e3m2fn),
    (mx.E4M3, ml_dtypes.float8_e4m3fn),
    (mx.E5M2, ml_dtypes.float8_e5m2),
]


def rows(values: list[float], block: int = 32) -> torch.Tensor:
    return torch.tensor([values + [0.0] * (-len(values) % block)])


@pytest.mark.parametrize(("element", "dtype"), CASTS, ids=lambda x: getattr(x, "__name__", ""))
def test_every_element_rounds_as_the_cast_of_ml_dtypes_does(element, dtype):
    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(200_000, generator=generator) * torch.exp2(
        torch.randint(-12, 9, (200_000,), generator=generator).float()
    )
    codes = np.arange(256 if np.dtype(dtype).itemsize == 1 else 16, dtype=np.uint8)
    exact = torch.from_numpy(codes.view(dtype).astype(np.float32))
    exact = exact[torch.isfinite(exact)].sort().values
    ties = (exact[1:] + exact[:-1]) / 2
    values = torch.cat([spread, exact, ties]).clamp(-element.largest, element.largest)
    assert np.array_equal(
        mx.round_to_element(values.clone(), element).numpy(), values.numpy().astype(dtype).astype(np.float32)
    )


def test_mxfp4_block_worked_out_from_the_specification():
    # amax 5 -> floor(log2 5) = 2, minus emax 2 -> scale 2^0. E2M1 holds 0 .5 1 1.5 2 3 4 6; ties go to the even code:
    # 0.25 -> 0, 0.75 -> 1, 1.75 -> 2, 2.5 -> 2, 3.5 -> 4, 5 -> 4.
    given = [5.0, -0.25, 0.75, 1.75, 2.5, -3.5, 0.1, 1.2]
    wanted = [4.0, -0.0, 1.0, 2.0, 2.0, -4.0, 0.0, 1.0]
    assert FORMATS["mxfp4"].roundtrip(rows(given))[0, :8].tolist() == wanted


def test_mxfp4_scale_follows_the_largest_value_of_the_block():
    # amax 0.07: floor(log2) = -4, scale 2^-6 = 0.015625; 0.07 / 2^-6 = 4.48 -> 4 -> 0.0625; 0.02 -> 1.28 -> 1.5 -> 0.0234375.
    assert FORMATS["mxfp4"].roundtrip(rows([0.07, 0.02]))[0, :2].tolist() == [0.0625, 0.0234375]


def test_mxfp8_saturates_instead_of_overflowing():
    # amax 500: floor(log2) = 8, minus emax 8 -> scale 1; 500 is over 448, the largest E4M3.
    assert FORMATS["mxfp8"].roundtrip(rows([500.0, 1.0]))[0, :2].tolist() == [448.0, 1.0]


def test_mxfp8_keeps_subnormals_of_the_element():
    # scale 1 (amax 256 = 2^8); 2^-9 is the smallest subnormal of E4M3, 2^-10 is the tie with 0 and goes to even.
    assert FORMATS["mxfp8"].roundtrip(rows([256.0, 2**-9, 2**-10]))[0, :3].tolist() == [256.0, 2**-9, 0.0]


def test_a_block_of_zeros_stays_zero_and_its_neighbour_is_its_own_block():
    values = torch.zeros(1, 64)
    values[0, 40] = 3.0
    assert torch.equal(FORMATS["mxfp4"].roundtrip(values), values)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "int4"])
def test_a_nan_makes_its_block_nan_and_no_other(name):
    values = torch.ones(1, 64)
    values[0, 5] = math.nan
    made = FORMATS[name].roundtrip(values, 32)
    assert made[0, :32].isnan().all() and not made[0, 32:].isnan().any()


def test_tiny_and_huge_values_stay_within_the_scales_of_e8m0():
    values = torch.tensor([[1e-45] * 32 + [3e38] * 32])
    made = FORMATS["mxfp4"].roundtrip(values)
    assert torch.isfinite(made).all() and made[0, 32:].min() > 2e38


def test_the_last_short_block_of_a_row_is_padded_and_cut_off_again():
    values = torch.randn(3, 40)
    blocks = blocks_of(values, 32)
    assert blocks.shape == (3, 2, 32) and torch.equal(rows_of(blocks, (3, 40)), values)
    assert torch.equal(
        FORMATS["mxfp8"].roundtrip(values)[:, :32], FORMATS["mxfp8"].roundtrip(values[:, :32].contiguous())
    )


def test_int4_symmetric_worked_out_by_hand():
    # amax 7 -> scale 1, codes -7..7, to nearest even: 2.5 -> 2, 3.5 -> 4.
    assert FORMATS["int4"].roundtrip(rows([7.0, 2.5, 3.5, -6.6], 128))[0, :4].tolist() == [7.0, 2.0, 4.0, -7.0]


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_err_by_at_most_half_a_step(bits):
    values = torch.randn(16, 256)
    step = values.view(16, 2, 128).abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (FORMATS[f"int{bits}"].roundtrip(values) - values).abs().view(16, 2, 128)
    # The scale is stored as float16: its rounding moves the largest code by up to 2^-11 of itself.
    assert (error <= step * (0.5 + 2 ** (bits - 12))).all()


@pytest.mark.parametrize(
    ("name", "bits"),
    {
        "mxfp4": 4.25,
        "mxfp8": 8.25,
        "int4": 4.125,
        "bf16": 16,
        "q2_k": 2.625,
        "q3_k": 3.4375,
        "q4_k": 4.5,
        "q6_k": 6.5625,
        "q8_0": 8.5,
    }.items(),
)
def test_bits_count_the_scales(name, bits):
    assert FORMATS[name].bits_per_value() == bits
    assert FORMATS[name].bits_of((4, 256)) == 4 * 256 * bits


def test_bits_of_a_short_last_block_count_a_whole_scale():
    assert FORMATS["mxfp4"].bits_of((2, 40)) == 2 * (40 * 4 + 2 * 8)
    assert FORMATS["int4"].bits_of((1, 64), group_size=32) == 64 * 4 + 2 * 16


@pytest.mark.parametrize(
    ("name", "low", "high"), [("mxfp4", 18.6, 19.0), ("mxfp8", 30.4, 30.8), ("int4", 18.3, 18.9), ("q8_0", 45.2, 45.6)]
)
def test_signal_to_noise_on_gaussian_data_is_the_known_one(name, low, high):
    values = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    noise = FORMATS[name].roundtrip(values) - values
    assert low < 10 * math.log10(values.square().sum() / noise.square().sum()) < high


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "gguf_mxfp4"])
def test_blocks_equal_those_of_the_gguf_package(name):
    form = FORMATS[name]
    values = torch.randn(8, 128)
    wanted = quants.quantize(values.numpy(), GGMLQuantizationType[form.gguf_type])
    assert np.array_equal(form.quantize(values, 32, None).parts["data"].numpy(), wanted)


def test_mxfp4_differs_from_its_gguf_twin_only_where_values_are_tied():
    values = torch.randn(64, 256).to(torch.bfloat16).float()
    ours, theirs = FORMATS["mxfp4"].roundtrip(values), FORMATS["gguf_mxfp4"].roundtrip(values)
    tied = (ours - values).abs() == (theirs - values).abs()
    assert torch.equal(ours[~tied], theirs[~tied]) and 0 < (ours != theirs).float().mean() < 0.02


def test_more_threads_give_the_same_bytes():
    values = np.random.default_rng(0).standard_normal((37, 512)).astype(np.float32)
    importance = np.abs(values[0]) + 0.1
    one = ggml.encode(values, GGMLQuantizationType.Q4_K, importance, threads=1)
    assert np.array_equal(one, ggml.encode(values, GGMLQuantizationType.Q4_K, importance, threads=3))


def test_the_importance_matrix_moves_the_error_to_columns_that_matter_less():
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    importance = torch.ones(256)
    importance[:64] = 100.0
    plain, weighted = FORMATS["q3_k"].roundtrip(values), FORMATS["q3_k"].roundtrip(values, importance=importance)
    error = [(made - values)[:, :64].square().mean() for made in (weighted, plain)]
    assert error[0] < error[1]


def test_columns_that_are_no_multiple_of_the_block_are_refused_before_any_work():
    with pytest.raises(UserError, match="192 columns are no multiple of Q4_K's block of 256"):
        FORMATS["q4_k"].roundtrip(torch.randn(4, 192))


@pytest.mark.parametrize(
    ("kind", "columns", "wanted"),
    [("Q4_K", 192, "Q5_0"), ("Q6_K", 96, "Q8_0"), ("Q2_K", 96, "Q4_0"), ("Q8_0", 40, "F16"), ("Q4_K", 512, "Q4_K")],
)
def test_fallbacks_are_those_of_llama_cpp(kind, columns, wanted):
    assert ggml.fallback(GGMLQuantizationType[kind], columns).name == wanted


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(UserError, match="mxfp4"):
        format_named("mxfp5")
