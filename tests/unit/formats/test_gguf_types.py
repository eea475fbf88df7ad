"""GGUF types of 1.5 to 3.5 bits: sizes, blocks, and the importance matrix that some of them need."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize

from bitplan.core.errors import UserError
from bitplan.formats.facts import NEED_IMPORTANCE, TYPE_NAMES
from bitplan.formats.fitting import BLOCKS, SUBSTITUTES, fitting_format
from bitplan.formats.importance import check_importance, needing_importance
from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.apply import QuantizedWeights, apply_plan
from bitplan.plans.plan import LayerPlan, Plan, expand

BITS = {
    "iq1_s": 1.5625,
    "iq1_m": 1.75,
    "iq2_xxs": 2.0625,
    "iq2_xs": 2.3125,
    "iq2_s": 2.5625,
    "iq3_xxs": 3.0625,
    "iq3_s": 3.4375,
    "tq1_0": 1.6875,
    "tq2_0": 2.0625,
    "gguf_nvfp4": 4.5,
}
# Their code books are prepared in seconds, once for each process: two stand for all here.
FAST = ("iq3_xxs", "iq3_s", "tq1_0", "tq2_0", "gguf_nvfp4")


@pytest.mark.parametrize("name", BITS)
def test_bits_and_blocks_are_ggmls(name):
    form = FORMATS[name]
    assert form.bits_per_value() == BITS[name]
    assert form.block == BLOCKS[name] == (64 if name == "gguf_nvfp4" else 256)


@pytest.mark.parametrize("name", FAST)
def test_values_are_those_that_ggufs_own_decoder_reads(name):
    form = FORMATS[name]
    values = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    quantized = form.quantize(values, form.block, torch.rand(512) + 0.1)
    rows = quantized.parts["data"].numpy()
    assert rows.shape == (4, 512 * BITS[name] / 8)
    expected = dequantize(rows, GGMLQuantizationType[TYPE_NAMES[name]])
    assert np.array_equal(form.dequantize(quantized, form.block).numpy(), expected)


@pytest.mark.parametrize("name", FAST)
def test_importance_changes_the_bytes_but_of_types_that_ignore_it(name):
    form = FORMATS[name]
    values = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    importance = torch.ones(512)
    importance[::2] = 1000.0
    plain, weighted = (form.quantize(values, form.block, each).parts["data"] for each in (None, importance))
    assert torch.equal(plain, weighted) == (name in ("tq1_0", "tq2_0", "gguf_nvfp4"))


def test_rows_that_do_not_fit_get_llama_cpps_substitute():
    for name in BITS:
        if name != "gguf_nvfp4":
            assert fitting_format(name, 96) == SUBSTITUTES[name] == ("q4_0" if name.startswith("tq") else "iq4_nl")
    assert fitting_format("gguf_nvfp4", 96) == "bf16"
    assert fitting_format("iq2_s", 40) == "bf16"


def test_the_list_of_types_that_need_importance_is_that_of_llama_cpps_tool():
    needing = needing_importance(["q2_k", *BITS, "mxfp4/mxfp8", "iq2_s/mxfp8"])
    assert needing == ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"] == list(NEED_IMPORTANCE)
    check_importance(BITS, given=True)
    with pytest.raises(UserError, match=r"FORMAT-NEEDS-IMPORTANCE\] format iq2_s, iq3_xxs: .*--imatrix"):
        check_importance(["iq2_s", "q2_k", "iq3_xxs/mxfp8"], given=False)


def test_without_importance_a_type_that_needs_it_weights_all_columns_alike():
    # An expert that no token reached has none, whatever the matrix has for the others.
    form, values = FORMATS["iq3_xxs"], torch.randn(2, 256, generator=torch.Generator().manual_seed(1))
    assert torch.equal(form.roundtrip(values), form.roundtrip(values, importance=torch.ones(256)))


LAYER = Layer("model.layers.0.mlp.up_proj", "mlp_up", (8, 256), 0, "", False)
INFO = ModelInfo("", "", "", "", LAYER.params, (LAYER,))


def test_a_plan_is_not_applied_without_the_importance_that_its_formats_need():
    plan = Plan({LAYER.name: LayerPlan("iq2_xs")})
    with pytest.raises(UserError, match="FORMAT-NEEDS-IMPORTANCE.*iq2_xs"):
        apply_plan(plan, INFO, QuantizedWeights())
    apply_plan(plan, INFO, QuantizedWeights(importance={LAYER.name: torch.ones(256)}))
    apply_plan(Plan({LAYER.name: LayerPlan("iq3_s")}), INFO, QuantizedWeights())


def test_embeddings_have_no_importance_and_cannot_have_such_a_type():
    head = Layer("lm_head", "lm_head", (8, 256), -1, "", True)
    entry = {"pattern": "lm_head", "wq": "iq2_s", "embeddings": True}
    with pytest.raises(UserError, match=r"PLAN-EMBEDDINGS-FORMAT.*iq2_s needs an importance matrix"):
        expand({"overrides": [entry]}, [LAYER, head])
