"""GGUF types by ggml's own quantizer: blocks, threads, importance, and the types of rows that do not fit."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from bitplan.core.errors import UserError
from bitplan.formats import ggml
from bitplan.formats.facts import TYPE_NAMES
from bitplan.formats.table import FORMATS


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "gguf_mxfp4"])
def test_blocks_equal_those_of_the_gguf_package(name):
    form = FORMATS[name]
    values = torch.randn(8, 128)
    expected = quants.quantize(values.numpy(), GGMLQuantizationType[TYPE_NAMES[form.name]])
    assert np.array_equal(form.quantize(values, 32, None).parts["data"].numpy(), expected)


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
    error = [(quantized - values)[:, :64].square().mean() for quantized in (weighted, plain)]
    assert error[0] < error[1]


def test_columns_that_are_no_multiple_of_the_block_are_refused_before_any_work():
    with pytest.raises(UserError, match="FORMAT-COLUMNS.*192"):
        FORMATS["q4_k"].roundtrip(torch.randn(4, 192))


@pytest.mark.parametrize(
    ("kind", "columns", "expected"),
    [
        ("Q4_K", 192, "Q5_0"),
        ("Q6_K", 96, "Q8_0"),
        ("Q2_K", 96, "Q4_0"),
        ("IQ4_XS", 96, "IQ4_NL"),
        ("IQ4_XS", 40, "F16"),
        ("Q4_1", 96, "Q4_1"),
        ("Q5_1", 40, "F16"),
        ("Q8_0", 40, "F16"),
        ("Q4_K", 512, "Q4_K"),
    ],
)
def test_fallbacks_are_those_of_llama_cpp(kind, columns, expected):
    assert ggml.fallback(GGMLQuantizationType[kind], columns).name == expected
