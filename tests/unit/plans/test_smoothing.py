"""SmoothQuant: no output changes before quantization, ranges shrink by the formula, and folded factors survive saving."""

import json
from dataclasses import replace

import pytest
import torch
from gguf import GGUFReader

from bitplan.core.errors import UserError
from bitplan.evaluate.perplexity import plan_hidden, plan_nll, score_plan
from bitplan.evaluate.scores import summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights, quantize_inputs, smooth_
from bitplan.plans.plan import LayerPlan, read_plan, uniform_plan, write_plan
from bitplan.plans.smoothing import SmoothGroup, Smoothing, read_smoothing, smoothing_path, write_smoothing
from bitplan.reference.reference import make_reference
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.export import export_plan
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.transformers.checkpoint import write_checkpoint
from bitplan.sensitivity.local_errors import Choice, SensitivitySettings, measure_sensitivity
from bitplan.sensitivity.smooth_factors import factors
from bitplan.statistics.inputs import observe_inputs
from tests.families import FAMILIES, TEXT, make_family

A4, A8 = Choice("int4", "int4_tensor"), Choice("int4", "int8_tensor")
# The norms of a block that feed layers, and the layers whose input is divided instead.
EXPECTED = {
    "llama": ({"input_layernorm": 3, "post_attention_layernorm": 2}, 2),
    "qwen2": ({"input_layernorm": 3, "post_attention_layernorm": 2}, 2),
    "opt": ({"self_attn_layer_norm": 3, "final_layer_norm": 1}, 2),
    "gemma": ({"input_layernorm": 3, "post_attention_layernorm": 2}, 2),
    "gpt2": ({"ln_1": 1, "ln_2": 1}, 2),
    "gpt_neox": ({"input_layernorm": 1, "post_attention_layernorm": 1}, 2),
    # Router and experts read the same norm: 1 + 4 x 2.
    "mixtral": ({"input_layernorm": 3, "post_attention_layernorm": 9}, 5),
}


class Opened:
    def __init__(self, folder) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.info = describe(self.checkpoint)
        self.model = open_model(self.checkpoint)
        self.model.tokens_per_batch = 64
        self.reference = make_reference(self.model, TEXT, 32, 6, "fp32")

    def smoothing(self, *alphas: float) -> Smoothing:
        settings = SensitivitySettings((A4,), alphas or (0.5,), tokens=96)
        return measure_sensitivity(self.model, self.info, self.reference.tokens, settings)[1]


@pytest.fixture(scope="module", params=EXPECTED)
def family(request, tmp_path_factory):
    return request.param, Opened(make_family(request.param, tmp_path_factory.mktemp(request.param) / "model"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Opened(make_family("llama", tmp_path_factory.mktemp("smooth") / "model"))


def test_outputs_do_not_change_before_quantization(family):
    _, case = family
    plan = replace(uniform_plan(case.info, "bf16"), smoothing=case.smoothing())
    smoothed = plan_hidden(case.model, case.info, plan, case.reference.tokens, QuantizedWeights())
    assert (smoothed - case.reference.hidden).abs().max() < 1e-5 * case.reference.hidden.abs().max()


def test_factors_are_folded_into_the_norm_that_an_input_comes_from(family):
    name, case = family
    norms, inputs = EXPECTED[name]
    groups = case.smoothing().groups
    folded = {g.norm.rsplit(".", 1)[-1]: len(g.layers) for g in groups if g.norm and ".0." in g.norm}
    assert folded == norms
    assert sum(not g.norm for g in groups) == 2 * inputs and sum(bool(g.norm) for g in groups) == 4
    assert {g.offset for g in groups if g.norm} == ({1.0} if name == "gemma" else {0.0})


def test_activation_ranges_fall_as_the_formula_says(llama):
    smoothing, ranges = llama.smoothing(), {}
    layers = {layer.name: layer for layer in llama.info.layers}
    plan = replace(uniform_plan(llama.info, "bf16"), smoothing=smoothing)

    def measuring(smooth: bool):
        def visit(block, hidden, forward):
            if smooth:
                smooth_(block, smoothing, layers)
            with (
                quantize_inputs(block, plan if smooth else uniform_plan(llama.info, "bf16"), {}),
                observe_inputs(block, 0) as seen,
            ):
                answer = forward(hidden)
            ranges[smooth] = ranges.get(smooth, {}) | seen.absmax
            return answer

        return visit

    for smooth in (False, True):
        llama.model.run(llama.reference.tokens, measuring(smooth))
    for group in smoothing.groups:
        for layer in group.layers if group.norm else ():
            assert torch.allclose(ranges[True][layer], ranges[False][layer] / group.scale, rtol=1e-3, atol=1e-6)
    name = "model.layers.0.mlp.up_proj"
    group = smoothing.by_layer[name]
    weights = [llama.checkpoint.read([f"{n}.weight"])[f"{n}.weight"].abs().amax(0) for n in group.layers]
    expected = factors(ranges[False][group.norm], torch.stack(weights).amax(0), 0.5)
    assert torch.allclose(group.scale, expected)
    # With alpha 1/2 inputs and weights of a column have the same range afterwards.
    scaled = torch.stack(weights).amax(0) * group.scale
    assert torch.allclose(ranges[True][group.norm], scaled, rtol=1e-3)


def test_factors_worked_out_by_hand():
    # sqrt(16) / sqrt(4) = 2; a column without inputs or weights has factor 1.
    scale = factors(torch.tensor([16.0, 0.0, 3.0]), torch.tensor([4.0, 1.0, 0.0]), 0.5)
    assert scale.tolist() == [2.0, 1.0, 1.0]
    assert factors(torch.tensor([16.0]), torch.tensor([4.0]), 1.0).item() == 16.0


def test_smoothing_lowers_the_damage_of_four_bit_activations(demo):
    checkpoint = Checkpoint.open(demo / "model")
    info, model = describe(checkpoint), open_model(checkpoint)
    reference = make_reference(model, demo / "calibration.txt", 256, 4, "fp32")
    kl = []
    for alphas in ((), (0.5,), (0.4, 0.5, 0.6)):
        settings = SensitivitySettings((A4,), alphas)
        smoothing = measure_sensitivity(model, info, reference.tokens, settings)[1]
        plan = replace(uniform_plan(info, "int4", "int4_tensor"), smoothing=smoothing)
        kl.append(summarize(score_plan(model, info, plan, reference, QuantizedWeights()))["kl_mean"])
    assert kl[1] < 0.5 * kl[0] and kl[2] < kl[1]


def test_a_plan_carries_its_smoothing_through_its_file(llama, tmp_path):
    plan = replace(uniform_plan(llama.info, "int4", "int8_tensor"), smoothing=llama.smoothing())
    write_plan(tmp_path / "plan.json", plan, LayerPlan(), llama.info, "summary")
    again = read_plan(tmp_path / "plan.json", llama.info)
    assert again.smoothing.digest == plan.smoothing.digest
    first = smoothing_path(tmp_path / "plan.json").read_bytes()
    write_smoothing(smoothing_path(tmp_path / "plan.json"), plan.smoothing)
    assert smoothing_path(tmp_path / "plan.json").read_bytes() == first
    hidden = [
        plan_hidden(llama.model, llama.info, p, llama.reference.tokens, QuantizedWeights()) for p in (plan, again)
    ]
    assert torch.equal(*hidden)


def test_factors_of_another_plan_are_refused(llama, tmp_path):
    plan = replace(uniform_plan(llama.info, "int4"), smoothing=llama.smoothing())
    write_plan(tmp_path / "plan.json", plan, LayerPlan(), llama.info, "summary")
    group = plan.smoothing.groups[0]
    other = Smoothing((SmoothGroup(group.layers, 2 * group.scale, group.norm),))
    write_smoothing(smoothing_path(tmp_path / "plan.json"), other)
    with pytest.raises(UserError, match="belongs to another plan"):
        read_plan(tmp_path / "plan.json", llama.info)
    smoothing_path(tmp_path / "plan.json").unlink()
    with pytest.raises(UserError, match="is no file of smoothing factors"):
        read_plan(tmp_path / "plan.json", llama.info)
    (tmp_path / "x.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match="is no file of smoothing factors"):
        read_smoothing(tmp_path / "x.safetensors")


def test_quantized_weights_of_smoothed_and_plain_layers_are_told_apart(llama):
    weights, plain = QuantizedWeights(), uniform_plan(llama.info, "int4")
    smooth = replace(plain, smoothing=llama.smoothing())
    first = plan_hidden(llama.model, llama.info, plain, llama.reference.tokens, weights)
    second = plan_hidden(llama.model, llama.info, smooth, llama.reference.tokens, weights)
    assert weights.quantizations == 28 and not torch.equal(first, second)
    assert torch.equal(first, plan_hidden(llama.model, llama.info, plain, llama.reference.tokens, weights))


def test_layers_that_share_an_input_divide_and_quantize_it_once(llama, monkeypatch):
    calls = []
    form = QuantizedWeights().formats["int8_tensor"]
    plan = replace(uniform_plan(llama.info, "bf16", "int8_tensor"), smoothing=llama.smoothing())

    class Counting:
        @staticmethod
        def roundtrip(values, group):
            calls.append(values.shape)
            return form.roundtrip(values, group)

    def visit(block, hidden, forward):
        with quantize_inputs(block, plan, {"int8_tensor": Counting}):
            return forward(hidden)

    llama.model.run(llama.reference.tokens[:2], visit)
    # q, k and v share one input; gate and up another; o and down have their own. Two blocks, one batch of 64 tokens.
    assert len(calls) == 2 * 4


def test_a_checkpoint_with_folded_smoothing_scores_as_the_plan(family, tmp_path):
    _, case = family
    for wq in ("bf16", "int4"):
        plan = replace(uniform_plan(case.info, wq), smoothing=case.smoothing())
        expected = plan_nll(case.model, case.info, plan, case.reference, QuantizedWeights()).double().mean().item()
        write_checkpoint(tmp_path / wq, case.checkpoint, case.info, plan, QuantizedWeights(limit=0))
        written = Opened(tmp_path / wq)
        plain = plan_nll(
            written.model, written.info, uniform_plan(written.info, "bf16"), case.reference, QuantizedWeights()
        )
        assert plain.double().mean().item() == pytest.approx(expected, abs=1e-6)


def test_the_command_keeps_a_plans_factors_out_of_the_weights_it_writes(llama, command, tmp_path):
    plan = replace(uniform_plan(llama.info, "int4"), smoothing=llama.smoothing())
    write_plan(tmp_path / "p.json", plan, LayerPlan(), llama.info, "summary")
    folder = llama.checkpoint.folder
    command("quantize_model.py", "--model", folder, "--layer-config", tmp_path / "p.json", "--output", tmp_path / "out")
    assert Checkpoint.open(tmp_path / "out").tensors.keys() == llama.checkpoint.tensors.keys()


@pytest.fixture
def base(family, tmp_path):
    name, case = family
    if not FAMILIES[name].gguf:
        pytest.skip("llama.cpp does not know this family")
    convert(case.checkpoint, tmp_path / "base.gguf")
    return tmp_path / "base.gguf"


def test_a_gguf_with_folded_smoothing_computes_what_the_model_computes(family, base, tmp_path):
    _, case = family
    plan = replace(uniform_plan(case.info, "bf16"), smoothing=case.smoothing())
    report = export_plan(base, tmp_path / "o.gguf", case.info, plan, "f32", {}, 1)
    assert summarize(score_gguf(tmp_path / "o.gguf", case.reference, 1))["kl_mean"] < 1e-6
    assert report["smoothing"]["folded"] == 4 and len(report["smoothing"]["not_stored"]) == 2 * EXPECTED[family[0]][1]
    q8 = replace(uniform_plan(case.info, "q8_0", "int8_tensor"), smoothing=case.smoothing())
    export_plan(base, tmp_path / "q8.gguf", case.info, q8, "f16", {}, 1)
    assert summarize(score_gguf(tmp_path / "q8.gguf", case.reference, 1))["kl_mean"] < 1e-3
    norms = [
        {t.name: t.data for t in GGUFReader(path).tensors if "norm" in t.name} for path in (base, tmp_path / "o.gguf")
    ]
    assert any(not (norms[0][name] == norms[1][name]).all() for name in norms[0])


@pytest.mark.parametrize(
    ("family", "setting"),
    [("opt", {"do_layer_norm_before": False}), ("bloom", {"apply_residual_connection_post_layernorm": True})],
)
def test_a_norm_that_feeds_the_residual_too_is_left_alone(family, setting, tmp_path):
    folder = make_family(family, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **setting}))
    case = Opened(folder)
    smoothing = case.smoothing()
    plan = replace(uniform_plan(case.info, "bf16"), smoothing=smoothing)
    smoothed = plan_hidden(case.model, case.info, plan, case.reference.tokens, QuantizedWeights())
    assert (smoothed - case.reference.hidden).abs().max() < 1e-4 * case.reference.hidden.abs().max()
    assert set(smoothing.by_layer) == {layer.name for layer in case.info.quantizable}


@pytest.mark.parametrize("name", ["mixtral", "llama"])
def test_scales_of_a_window_do_not_depend_on_how_windows_are_batched(name, tmp_path):
    case = Opened(make_family(name, tmp_path / "model"))
    plan, hidden = uniform_plan(case.info, "int4", "int4_tensor"), []
    for tokens in (32, 64, 192):
        case.model.tokens_per_batch = tokens
        hidden.append(plan_hidden(case.model, case.info, plan, case.reference.tokens, QuantizedWeights()))
    assert all(torch.allclose(each, hidden[0], atol=1e-4) for each in hidden)


def test_the_importance_of_a_smoothed_input_is_that_of_its_quotient(llama):
    name, weights = (
        "model.layers.0.mlp.up_proj",
        QuantizedWeights(importance={"model.layers.0.mlp.up_proj": torch.rand(64)}),
    )
    smoothing, weight = llama.smoothing(), torch.randn(8, 64)
    quantized = weights.get(name, weight, LayerPlan("mxfp4_mse"), smoothing)
    importance = weights.importance[name] / smoothing.factor(name) ** 2
    assert torch.equal(quantized, weights.formats["mxfp4_mse"].roundtrip(weight, 32, importance))
