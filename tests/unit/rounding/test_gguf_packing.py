"""Codes of integers, MXFP4 and MXFP6 in GGUF blocks: gguf's own decoder makes the formats' very values of them."""

import pytest
import torch
from gguf import GGMLQuantizationType, dequantize

from bitplan.formats.base import Quantized
from bitplan.formats.table import FORMATS
from bitplan.rounding.gguf_holders import PACKINGS, packing_of, why_not_packed
from bitplan.rounding.gguf_packing import pack, scales_fit

HELD = {"int2": "Q4_0", "int4": "Q4_0", "int5": "Q5_0", "int6": "Q8_0", "int8": "Q8_0", "mxfp4": "MXFP4"}


def weight(columns: int = 288) -> torch.Tensor:
    """Rows of sizes from 1e-3 to 1e3, one of zeros, and one with the largest value at the end of a short group."""
    values = torch.randn(12, columns, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 12)[:, None]
    values[3], values[4, -1] = 0.0, 7.5
    return values


@pytest.mark.parametrize("name", sorted(PACKINGS))
@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_type_holds_a_formats_very_values_in_any_group_of_whole_blocks(name, group):
    quantized = FORMATS[name].quantize(weight(), group, None)
    kind = GGMLQuantizationType[packing_of(name, group, 288).kind]
    assert scales_fit(quantized, name)
    stored = torch.from_numpy(dequantize(pack(quantized, name, group), kind))
    assert torch.equal(stored, FORMATS[name].dequantize(quantized, group))
    packed = FORMATS[name].pack(quantized)
    assert (pack(packed, name, group) == pack(quantized, name, group)).all()


@pytest.mark.parametrize(("name", "kind"), HELD.items())
def test_each_format_has_the_smallest_type_that_holds_its_codes(name, kind):
    assert packing_of(name, 32, 64).kind == kind


@pytest.mark.parametrize(
    ("name", "group", "columns", "why"),
    [("int4", 48, 96, "groups of 48 values"), ("mxfp4", 16, 96, "groups of 16"), ("int8", 32, 80, "80 columns")],
)
def test_groups_and_rows_without_whole_blocks_are_not_packed(name, group, columns, why):
    assert packing_of(name, group, columns) is None and why in why_not_packed(name, group, columns)


def test_formats_without_a_type_have_no_reason():
    assert packing_of("mxfp8", 32, 64) is None and why_not_packed("mxfp8", 30, 64) == ""


@pytest.mark.parametrize(("exponent", "fits"), [(-20, True), (17, True), (-21, False), (18, False)])
def test_scales_that_are_no_float16_numbers_are_seen(exponent, fits):
    parts = {"elements": torch.ones(1, 1, 32), "exponent": torch.tensor([[exponent]], dtype=torch.int8)}
    quantized = Quantized(parts, (1, 32))
    assert scales_fit(quantized, "mxfp6_e2m3") is fits and scales_fit(quantized, "mxfp4")
