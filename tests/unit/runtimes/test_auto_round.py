"""AutoRound's checkpoints: codes that its own torch backend unpacks are the plan's, one for one."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitplan.evaluate.scores import summarize
from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer
from bitplan.plans.plan import LayerPlan, uniform_plan
from bitplan.runtimes.auto_round.packing import packed, unpacked
from bitplan.runtimes.auto_round.runtime import RUNTIME
from bitplan.runtimes.auto_round.schemes import scheme_of
from bitplan.runtimes.verdicts import plan_verdicts
from tests.families import make_family
from tests.unit.runtimes.packed_models import dealt, described, exported, logits, measured_plan, simulated

PACKED = [name for name in FORMATS if scheme_of(LayerPlan(name)) is not None]
FEW = tuple(LayerPlan(name, group_size=32) for name in ("int4", "int3_asym", "int8", "int2_asym", "int5", "bf16"))


@pytest.fixture(scope="module")
def auto_round():
    return pytest.importorskip("auto_round", reason="needs the packages auto-round and py-cpuinfo")


def loaded(folder, ours):
    """The model as auto-round's torch backend loads it, widened to compute in float32.

    auto-round loads in float16 alone. That holds scales and codes as they are; all that is not packed is taken from `ours`.
    """
    from transformers import AutoRoundConfig

    backend = AutoRoundConfig(backend="auto_round:torch")
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, quantization_config=backend).eval()
    torch.nn.Module.float(net)
    net.load_state_dict(
        {name: value for name, value in ours.state_dict().items() if name in net.state_dict()}, strict=False
    )
    return net


def weight_in(module) -> torch.Tensor:
    """The weight (out, in) that a module of auto-round multiplies by."""
    bias, module.bias = getattr(module, "bias", None), None
    made = module(torch.eye(module.infeatures)).T
    module.bias = bias
    return made


def assert_as_simulated(made, plan, packed_folder, folder) -> None:
    """Fail unless every packed matrix is the simulation's bit for bit, and the logits are within 1e-3."""
    ours = simulated(made, plan, folder)
    theirs = loaded(packed_folder, ours)
    kept = [layer.name for layer in made.info.quantizable if scheme_of(plan.of(layer.name)) is not None]
    with torch.no_grad():
        for name in kept:
            assert torch.equal(weight_in(theirs.get_submodule(name)), ours.get_parameter(f"{name}.weight")), name
    assert (logits(ours) - logits(theirs)).abs().max().item() <= 1e-3


@pytest.mark.parametrize("name", PACKED)
def test_what_is_written_unpacks_to_the_very_values_of_a_format_in_the_bits_that_are_said(name):
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 64).unsqueeze(1)
    values[0], values[1, :32] = 0.0, 0.0
    form, scheme = FORMATS[name], scheme_of(LayerPlan(name))
    quantized = form.quantize(values, scheme.group, None)
    tensors = packed(quantized, scheme)
    assert torch.equal(unpacked(tensors, scheme), form.dequantize(quantized, scheme.group))
    bits = 8 * sum(each.numel() * each.element_size() for each in tensors.values())
    assert bits == pytest.approx(scheme.stored_bits * values.numel(), rel=1e-9)


@pytest.mark.parametrize(
    "family",
    ["llama", "qwen2", "gemma", "qwen3", "phi3", "opt", "gpt_neox", "mistral", "gemma2", "gemma3_text", "bloom"],
)
def test_families_load_in_auto_round_as_simulated(auto_round, family, tmp_path):
    made = described(make_family(family, tmp_path / "model"))
    plan = dealt(made.info, FEW)
    report = exported(RUNTIME, made, plan, tmp_path / "packed")
    assert report["fusion"] == [] and report["differences"] == 0
    assert_as_simulated(made, plan, tmp_path / "packed", tmp_path / "simulated")


@pytest.mark.parametrize(("family", "reason"), [("gpt2", "Conv1D"), ("mixtral", "experts"), ("falcon", "FalconLinear")])
def test_conv1d_experts_and_other_modules_are_refused_in_words(family, reason, tmp_path):
    made = described(make_family(family, tmp_path / "model"))
    verdicts = plan_verdicts(RUNTIME, uniform_plan(made.info, "int4", group_size=32), made.info)
    reasons = {verdict.reason for verdict in verdicts.values() if verdict.status == "refused"}
    assert len(reasons) == 1 and reason in reasons.pop()


def test_the_configuration_says_what_differs_from_the_most_frequent_scheme(tmp_path):
    made = described(make_family("llama", tmp_path / "model"))
    plan = uniform_plan(made.info, "int4", group_size=32)
    first = "model.layers.0.mlp.down_proj"
    odd = {first: LayerPlan("int4_asym", group_size=32), "model.layers.1.mlp.down_proj": LayerPlan("bf16")}
    exported(RUNTIME, made, replace(plan, layers={**plan.layers, **odd}), tmp_path / "packed")
    config = json.loads((tmp_path / "packed/config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"], config["sym"]) == (4, 32, True)
    assert config["extra_config"][first] == {"sym": False}
    assert config["extra_config"]["model.layers.1.mlp.down_proj"] == {"bits": 16, "data_type": "float"}
    assert config["block_name_to_quantize"] == "model.layers"


LINEAR = Layer("model.layers.0.mlp.up_proj", "mlp_up", (64, 256), 0, "", False)


@pytest.mark.parametrize(
    ("made", "layer", "status", "reason"),
    [
        (LayerPlan("int4_asym"), {}, "exact", ""),
        (LayerPlan("int4"), {}, "exact_in_more_bits", "a zero point"),
        (LayerPlan("int6"), {}, "exact_in_more_bits", "not every reader has 6 bits"),
        (LayerPlan("int4", "mxfp8"), {}, "approximate", "inputs stay at 16 bits, not mxfp8"),
        (LayerPlan("mxfp4"), {}, "refused", "integers alone, not mxfp4"),
        (LayerPlan("int4", group_size=100), {}, "refused", "no multiple of the group of 100"),
        (LayerPlan("int4"), {"shape": (40, 256)}, "refused", "multiples of 32"),
        (LayerPlan("int4"), {"transposed": True}, "refused", "Conv1D"),
        (LayerPlan("int4"), {"name": "model.layers.0.mlp.experts.1.up_proj"}, "refused", "experts"),
        (LayerPlan("int4"), {"name": "lm_head", "category": "lm_head"}, "refused", "output matrix"),
        (LayerPlan("bf16"), {"transposed": True}, "exact", ""),
    ],
)
def test_a_layer_is_judged_by_its_format_and_its_shape(made, layer, status, reason):
    verdict = RUNTIME.verdict(replace(LINEAR, **layer), made, None)
    assert verdict.status == status and reason in verdict.reason


def test_a_folder_is_scored_by_its_torch_backend_near_the_figures_of_the_simulation(auto_round, demo, tmp_path):
    made, reference, simulation = measured_plan(demo, "int4")
    exported(RUNTIME, made, uniform_plan(made.info, "int4", group_size=32), tmp_path / "packed")
    scores = summarize(RUNTIME.score(tmp_path / "packed", reference, 1))
    # It computes in float16.
    assert scores["kl_mean"] == pytest.approx(simulation["kl_mean"], rel=0.02)
    assert scores["ppl"] == pytest.approx(simulation["ppl"], rel=1e-3)


def test_a_plan_that_leaves_all_at_16_bits_is_scored_too(auto_round, demo, tmp_path):
    made, reference, _ = measured_plan(demo, "bf16")
    exported(RUNTIME, made, uniform_plan(made.info, "bf16"), tmp_path / "packed")
    assert summarize(RUNTIME.score(tmp_path / "packed", reference, 1))["kl_mean"] < 1e-4
