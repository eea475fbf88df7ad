"""Integer formats: symmetric and asymmetric, scales of both 16-bit types, groups, rows and whole tensors."""

import pytest
import torch

from bitplan.formats.table import FORMATS
from tests.unit.formats.values import ASYMMETRIC, BRAIN_SCALES, SYMMETRIC, normal, rows


def test_int4_symmetric_worked_out_by_hand():
    # amax 7 -> scale 1, codes -7..7, to nearest even: 2.5 -> 2, 3.5 -> 4.
    assert FORMATS["int4"].roundtrip(rows([7.0, 2.5, 3.5, -6.6], 128))[0, :4].tolist() == [7.0, 2.0, 4.0, -7.0]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        # -3 to 12: scale 15 / 15 = 1, zero 3; codes 0 to 15 stand for -3 to 12; ties to even.
        ("int4_asym", [-3.0, 12.0, 0.4, 5.5, 4.5, -0.6], [-3.0, 12.0, 0.0, 6.0, 4.0, -1.0]),
        # All over 0: the range starts at 0.
        ("int4_asym", [15.0, 1.6, 14.4], [15.0, 2.0, 14.0]),
        ("int2_asym", [-1.0, 2.0, 0.6, 1.4], [-1.0, 2.0, 1.0, 1.0]),
        # 255 steps of 1 around a zero point of 128.
        ("int8_asym", [-128.0, 127.0, 99.6], [-128.0, 127.0, 100.0]),
        # -7.5 to 7.5: scale 1, both ends are ties; zero 8, 7.5 would be code 16 and takes 15.
        ("int4_asym", [7.5, -7.5], [7.0, -8.0]),
    ],
)
def test_asymmetric_integers_worked_out_by_hand(name, values, expected):
    assert FORMATS[name].roundtrip(rows(values, 128))[0, : len(expected)].tolist() == expected


@pytest.mark.parametrize("name", ASYMMETRIC)
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-4])
def test_a_group_of_one_value_keeps_it_to_the_precision_of_the_scale(name, value):
    quantized = FORMATS[name].roundtrip(torch.full((2, 128), value))
    assert quantized.flatten().tolist() == pytest.approx([value] * 256, rel=2**-11 if abs(value) > 1 else 0.05, abs=0)


@pytest.mark.parametrize("name", [*SYMMETRIC, *ASYMMETRIC])
def test_scales_that_float16_cannot_hold_are_the_nearest_that_it_can(name):
    quantized = FORMATS[name].roundtrip(torch.tensor([[1e9, -1e-3] * 64 + [3e38, -3e38] * 64 + [1e-9, -1e-9] * 64]))
    codes = 2 ** FORMATS[name].element_bits - 1 if name in ASYMMETRIC else 2 ** (FORMATS[name].element_bits - 1) - 1
    assert torch.isfinite(quantized).all()
    assert quantized[0, 0] == codes * 65504.0
    assert (quantized[0, 256:] == 0).all()


@pytest.mark.parametrize("name", BRAIN_SCALES)
def test_scales_of_8_significant_bits_are_numbers_of_both_16_bit_types_at_any_magnitude(name):
    magnitudes = torch.logspace(-12, 7, 96).unsqueeze(1)
    quantized = FORMATS[name].quantize(torch.cat([normal(96, 128) * magnitudes, torch.zeros(1, 128)]), 64, None)
    scale = quantized.parts["scale"]
    assert scale.dtype is torch.bfloat16 and (scale > 0).all()
    assert torch.equal(scale.to(torch.float16).float(), scale.float())


@pytest.mark.parametrize("name", [*SYMMETRIC, *ASYMMETRIC])
def test_the_type_of_scales_changes_values_by_the_rounding_of_scales_and_no_more(name):
    values = normal(16, 256)
    one, other = FORMATS[name], FORMATS[f"{name}_bf16s"]
    assert other.bits_of((16, 256), 32) == one.bits_of((16, 256), 32)
    scales = [form.quantize(values, 32, None).parts["scale"].float() for form in (one, other)]
    # bfloat16 rounds by up to 2^-8 of the scale, float16 by up to 2^-11.
    assert ((scales[1] / scales[0] - 1).abs() <= 2.0**-8 + 2.0**-10).all() and not torch.equal(*scales)
    errors = [(form.roundtrip(values, 32) - values).square().mean().item() for form in (one, other)]
    assert errors[1] == pytest.approx(errors[0], rel=0.12)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("offset", [0.0, 0.7, -4.0])
def test_asymmetric_integers_err_by_at_most_half_a_step(bits, offset):
    values = normal(16, 256) + offset
    low, high = torch.aminmax(values.view(16, 2, 128), dim=-1, keepdim=True)
    step = (high.clamp(min=0) - low.clamp(max=0)) / (2**bits - 1)
    error = (FORMATS[f"int{bits}_asym"].roundtrip(values) - values).abs().view(16, 2, 128)
    # The scale is stored as float16: its rounding moves the largest code by up to 2^-11 of itself.
    assert (error <= step * (0.5 + 2 ** (bits - 11))).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_err_by_at_most_half_a_step(bits):
    values = torch.randn(16, 256)
    step = values.view(16, 2, 128).abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (FORMATS[f"int{bits}"].roundtrip(values) - values).abs().view(16, 2, 128)
    # The scale is stored as float16: its rounding moves the largest code by up to 2^-11 of itself.
    assert (error <= step * (0.5 + 2 ** (bits - 12))).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_token_has_its_own_scale_and_a_window_one_for_all_its_tokens(bits):
    sizes = torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)
    values = sizes * torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))
    steps = 2**bits - 1
    by_token, by_window = (FORMATS[f"int{bits}_{scope}"].roundtrip(values) for scope in ("token", "tensor"))
    for quantized, dims in ((by_token, (-1,)), (by_window, (-2, -1))):
        step = (values.amax(dims, keepdim=True) - values.amin(dims, keepdim=True)) / steps
        assert ((quantized - values).abs() <= step * (0.5 + 2.0 ** (bits - 10))).all()
    assert torch.equal(by_window[1], FORMATS[f"int{bits}_tensor"].roundtrip(values[1]))
    assert (by_token - values).square().mean() < (by_window - values).square().mean()


def test_bits_of_a_row_and_of_a_tensor_count_their_scales_once():
    assert FORMATS["int4_token"].bits_of((3, 100)) == 3 * (100 * 4 + 20)
    assert FORMATS["int8_tensor"].bits_of((3, 100)) == 3 * 100 * 8 + 24
