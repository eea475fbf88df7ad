"""GGUF types of 1.5 to 4.5 bits in one file: llama.cpp loads it, and it holds the simulated values; importance is asked for first."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

from bitplan.core.errors import UserError
from bitplan.formats.facts import NEED_IMPORTANCE
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan, uniform_plan, write_plan
from bitplan.reference.reference import make_reference
from bitplan.rounding.model import ModelRounding, round_plan
from bitplan.runtimes.export import export
from bitplan.runtimes.gguf.export import export_plan
from bitplan.runtimes.gguf.options import GGUFOptions
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.registry import runtime_named
from tests.unit.runtimes.test_export import sorted_rows

TYPES = (*NEED_IMPORTANCE, "iq3_s", "tq1_0", "tq2_0", "gguf_nvfp4")
STORED = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4"}


def importance(info) -> dict[str, np.ndarray]:
    """Made up: the file has to hold what was simulated with any."""
    random = np.random.default_rng(0)
    return {layer.name: random.random(layer.shape[1], np.float32) + np.float32(0.1) for layer in info.quantizable}


def in_turn(info) -> Plan:
    return Plan({layer.name: LayerPlan(TYPES[place % len(TYPES)]) for place, layer in enumerate(info.quantizable)})


# Ten seconds of processor time: ggml prepares the code books of the I types once for each process.
def test_a_file_of_all_types_holds_the_simulated_values_and_llama_cpp_computes_with_them(model, base, demo, tmp_path):
    checkpoint, info = model
    plan, given = in_turn(info), importance(info)
    report = export_plan(base, tmp_path / "model.gguf", info, plan, GGUFOptions(importance=given))
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    records = {record["layer"]: record for record in report["tensors"]}
    weights = QuantizedWeights(importance={name: torch.from_numpy(each) for name, each in given.items()})
    for layer in info.quantizable:
        weight = checkpoint.read([f"{layer.name}.weight"], torch.float32)[f"{layer.name}.weight"]
        tensor = stored[records[layer.name]["tensor"]]
        simulated = weights.get(layer.name, weight, plan.of(layer.name)).numpy()
        assert np.array_equal(sorted_rows(dequantize(tensor.data, tensor.tensor_type)), sorted_rows(simulated))
    assert {records[layer.name]["written"] for layer in info.quantizable} == STORED
    reference = make_reference(open_model(checkpoint), demo / "evaluation.txt", 64, 1, "fp32")
    assert score_gguf(tmp_path / "model.gguf", reference, 1).kl.isfinite().all()


def test_rounding_keeps_the_codes_of_types_without_a_grid_quantized_with_the_second_moments(
    model, base, demo, tmp_path
):
    checkpoint, info = model
    net = open_model(checkpoint)
    tokens = make_reference(net, demo / "calibration.txt", 64, 2, "fp32").tokens
    forms = ("iq3_xxs", "gguf_nvfp4", "tq2_0")
    plan = Plan({layer.name: LayerPlan(forms[place % 3]) for place, layer in enumerate(info.quantizable)})
    plan, rows = round_plan(net, info, plan, tokens, ModelRounding(reference_share=0), tmp_path / "rounded")
    how = {(row["format"], row["rounding"], bool(row["why"])) for row in rows}
    assert how == {("iq3_xxs", "nearest", True), ("tq2_0", "nearest", True), ("gguf_nvfp4", "feedback", False)}
    report = export_plan(base, tmp_path / "model.gguf", info, plan)
    assert report["rounded"] == {"rounding": "feedback", "layers": len(rows), "exact": len(rows)}


def test_every_layer_of_such_a_plan_is_exact_in_a_gguf_and_refused_elsewhere(model):
    layer = model[1].quantizable[0]
    for name in TYPES:
        assert runtime_named("gguf").verdict(layer, LayerPlan(name), model[1]).status == "exact"
        assert runtime_named("auto_round").verdict(layer, LayerPlan(name), model[1]).status == "refused"
    for name in ("nvfp4", "nvfp4_pow2"):
        verdict = runtime_named("gguf").verdict(layer, LayerPlan(name), model[1])
        assert (verdict.status, verdict.stored_type) == ("approximate", "NVFP4")


@pytest.mark.parametrize("runtime", ["gguf", "compressed_tensors"])
def test_an_export_without_importance_ends_before_anything_is_converted_or_written(model, runtime, tmp_path):
    info = model[1]
    names = [layer.name for layer in info.quantizable]
    plan = uniform_plan(info, "q4_k" if runtime == "gguf" else "int4")
    write_plan(tmp_path / "plan.json", Plan({**plan.layers, names[0]: LayerPlan("iq2_s")}), LayerPlan(), info)
    flags = {"model": model[0].folder, "plan": tmp_path / "plan.json", "card": None, "imatrix": None}
    nothing = dict.fromkeys(("model_name", "plan_name", "scores", "calibration"))
    args = Namespace(**flags, **nothing, allow_base_kl=False, output=tmp_path / "out")
    expected = "FORMAT-NEEDS-IMPORTANCE.*iq2_s" if runtime == "gguf" else "RUNTIME-REFUSED"
    with pytest.raises(UserError, match=expected):
        export(runtime_named(runtime), args)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]
