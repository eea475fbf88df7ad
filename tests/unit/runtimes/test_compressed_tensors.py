"""Checkpoints of packed tensors: every format's values, loaded by transformers, equal to the simulation's bit for bit."""

import json
import os
from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from transformers import AutoModelForCausalLM

from bitplan.core.errors import UserError
from bitplan.evaluate.scores import summarize
from bitplan.formats.table import FORMATS
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import Layer, describe
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan, uniform_plan
from bitplan.runtimes.compressed_tensors.packing import library_scheme, packed, unpacked
from bitplan.runtimes.compressed_tensors.runtime import RUNTIME
from bitplan.runtimes.compressed_tensors.schemes import layer_verdict, scheme_of
from bitplan.runtimes.compressed_tensors.scores import load_exact
from bitplan.runtimes.compressed_tensors.write import PACKING
from bitplan.runtimes.fusion import fusion_groups, repaired, unlike
from bitplan.runtimes.packed.packing import check_unpacked
from bitplan.runtimes.runtime import ExportJob
from bitplan.runtimes.transformers.checkpoint import write_checkpoint
from bitplan.runtimes.verdicts import plan_verdicts
from tests.families import make_family
from tests.unit.plans.test_smoothing import Opened as Smoothed
from tests.unit.rounding.test_rounded_models import rounded
from tests.unit.runtimes.packed_models import dealt
from tests.unit.search.opened_models import Opened

PACKED = [name for name in FORMATS if scheme_of(LayerPlan(name)) is not None]
# One format for each fusion group of the demo's four blocks: all that it can hold.
BY_GROUP = {
    "0.self_attn.o_proj": ("int4", None),
    "0.self_attn": ("int4", 32),
    "0.mlp.down_proj": ("mxfp4_mse", None),
    "0.mlp": ("mxfp8", None),
    "1.self_attn.o_proj": ("mxfp6_e3m2_rceil", None),
    "1.self_attn": ("mxfp6_e2m3", None),
    "1.mlp.down_proj": ("int3", 32),
    "1.mlp": ("int2", 32),
    "2.self_attn.o_proj": ("int6", 64),
    "2.self_attn": ("int5", None),
    "2.mlp.down_proj": ("int8", None),
    "2.mlp": ("int7", 32),
    "3.self_attn.o_proj": ("bf16", None),
    "3.mlp.down_proj": ("fp16", None),
    "3.mlp": ("mxfp4_rceil", None),
    "3.self_attn": ("mxfp4", None),
}


def of_everything(info) -> Plan:
    def formats(name: str) -> LayerPlan:
        return next(LayerPlan(wq, group_size=group) for key, (wq, group) in BY_GROUP.items() if f"layers.{key}" in name)

    return Plan({layer.name: formats(layer.name) for layer in info.quantizable})


def export(checkpoint, info, plan, folder, fusion: str = "repair"):
    job = ExportJob(checkpoint, info, plan, folder, settings={"fusion": fusion})
    return RUNTIME.write(job)


def simulated(checkpoint, info, plan, folder):
    """The model of the plan in transformers, float32: weights replaced by the values of their formats."""
    write_checkpoint(folder, checkpoint, info, plan, QuantizedWeights(limit=0))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def assert_same(ours, theirs) -> None:
    """Fail unless all weights are alike bit for bit, and the logits within 1e-6."""
    own, others = ours.state_dict(), theirs.state_dict()
    # Beside the weights transformers keeps their scales.
    assert own.keys() <= others.keys()
    assert [name for name, values in own.items() if not torch.equal(values, others[name])] == []
    tokens = torch.arange(3, 67).reshape(2, 32)
    with torch.no_grad():
        assert (ours(tokens).logits - theirs(tokens).logits).abs().max().item() <= 1e-6


@pytest.fixture(scope="module")
def bundled(demo):
    checkpoint = Checkpoint.open(demo / "model")
    return checkpoint, describe(checkpoint)


@pytest.fixture(scope="module")
def mixed(bundled, tmp_path_factory):
    """The demo's plan of everything, exported: (folder, report)."""
    folder = tmp_path_factory.mktemp("mixed") / "model"
    return folder, export(*bundled, of_everything(bundled[1]), folder)


# ------------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("name", PACKED)
def test_the_library_unpacks_the_very_values_of_a_format(name):
    values = torch.randn(24, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 24).unsqueeze(1)
    values[0], values[1, :32] = 0.0, 0.0
    form, scheme = FORMATS[name], scheme_of(LayerPlan(name))
    quantized = form.quantize(values, scheme.group, None)
    wanted = form.dequantize(quantized, scheme.group)
    tensors = packed(quantized, scheme)
    assert torch.equal(unpacked(tensors, scheme), wanted)
    bits = 8 * sum(each.numel() * each.element_size() for end, each in tensors.items() if end != "weight_shape")
    assert bits == pytest.approx(scheme.stored_bits * values.numel(), rel=0.01)
    with pytest.raises(AssertionError, match="compressed_tensors unpacks is not"):
        check_unpacked(PACKING, "a", tensors, scheme, wanted + 1)


# -------------------------------------------------------------------------------------------------------- whole models


def test_transformers_loads_a_plan_of_eleven_formats_as_it_was_simulated(bundled, mixed, tmp_path):
    checkpoint, info = bundled
    folder, report = mixed
    theirs = load_exact(folder)
    assert_same(simulated(checkpoint, info, of_everything(info), tmp_path / "simulated"), theirs)
    assert report["differences"] == 0 and report["fusion"] == []
    assert len(report["types"]) == 12


def test_the_folder_is_sharded_with_an_index_and_readable_by_others(mixed):
    folder, report = mixed
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) == 5 and sorted(set(index["weight_map"].values())) == files
    assert report["file_bytes"] == sum((folder / name).stat().st_size for name in files)
    assert all(os.stat(folder / name).st_mode & 0o444 == 0o444 for name in files)
    blocks = {name.split("layers.")[1][0] for name, file in index["weight_map"].items() if file == files[1]}
    assert blocks == {"1"}


def test_the_configuration_names_every_layer_once(mixed, bundled):
    config = json.loads((mixed[0] / "config.json").read_text())["quantization_config"]
    targets = [name for group in config["config_groups"].values() for name in group["targets"]]
    held = {layer.name for layer in bundled[1].quantizable}
    assert len(targets) == len(set(targets)) and set(targets) | set(config["ignore"]) == held | {"lm_head"}
    assert config["format"] == "mixed-precision" and config["quant_method"] == "compressed-tensors"


BRAIN = tuple(
    LayerPlan(f"int{bits}_bf16s", group_size=group) for bits, group in zip(range(2, 9), (32, 128) * 4, strict=False)
)


def in_bfloat16(folder):
    """The model that a bfloat16 server has: transformers loads and decompresses a folder in this type."""
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    if getattr(net, "hf_quantizer", None):
        net.hf_quantizer.compressor.decompress_model(net)
    return net


@pytest.fixture(scope="module")
def brain(bundled, tmp_path_factory):
    """The demo in integers of every width with bfloat16 scales, exported: (plan, folder)."""
    folder = tmp_path_factory.mktemp("brain") / "model"
    plan = dealt(bundled[1], BRAIN)
    export(*bundled, plan, folder)
    return plan, folder


def test_a_bfloat16_server_has_the_very_weights_of_integers_with_bfloat16_scales(bundled, brain, tmp_path):
    checkpoint, info = bundled
    plan, folder = brain
    simulated(checkpoint, info, plan, tmp_path / "simulated")
    ours, theirs = (in_bfloat16(each) for each in (tmp_path / "simulated", folder))
    assert {theirs.state_dict()[name].dtype for name in ours.state_dict()} == {torch.bfloat16}
    assert_same(ours, theirs)
    # Float16 scales it rounds, and its weights are others than were simulated; but for int2, whose values are a scale or its negative.
    half = Plan({name: replace(each, wq=each.wq.removesuffix("_bf16s")) for name, each in plan.layers.items()})
    export(checkpoint, info, half, tmp_path / "half")
    simulated(checkpoint, info, half, tmp_path / "simulated half")
    ours, theirs = (in_bfloat16(each).state_dict() for each in (tmp_path / "simulated half", tmp_path / "half"))
    apart = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert apart == [f"{layer.name}.weight" for layer in info.quantizable if half.of(layer.name).wq != "int2"]


def test_a_float32_model_has_the_very_values_too(bundled, brain, tmp_path):
    plan, folder = brain
    assert_same(simulated(*bundled, plan, tmp_path / "simulated"), load_exact(folder))


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_library_decompresses_zero_points_under_bfloat16_scales_to_our_values_in_bfloat16(bits):
    made = LayerPlan(f"int{bits}_asym_bf16s", group_size=32)
    values = torch.randn(24, 256, generator=torch.Generator().manual_seed(0))
    quantized = FORMATS[made.wq].quantize(values, 32, None)
    compressor = BaseCompressor.get_value_from_registry(scheme_of(made).packing)
    tensors = packed(quantized, scheme_of(made))
    theirs = compressor.decompress(tensors, library_scheme(scheme_of(made)))["weight"]
    assert theirs.dtype is torch.bfloat16
    assert torch.equal(theirs, FORMATS[made.wq].dequantize(quantized, 32).to(torch.bfloat16))


def test_it_is_scored_in_transformers(mixed, demo):
    made = Opened(demo / "model")
    figures = summarize(RUNTIME.score(mixed[0], made.reference, 1))
    assert 0 < figures["kl_mean"] < 1


@pytest.mark.parametrize(
    "family",
    ["qwen2", "gemma", "qwen3", "phi3", "opt", "gpt_neox", "mistral", "gemma2", "gemma3_text", "bloom"],
)
def test_families_with_biases_tied_matrices_and_fused_layers_load_as_simulated(family, tmp_path):
    made = Opened(make_family(family, tmp_path / "model"))
    formats = ("mxfp4", "int4", "mxfp8", "int8")
    kinds = dict.fromkeys(layer.fusion_group or layer.name for layer in made.info.quantizable)
    of_group = {group: formats[place % len(formats)] for place, group in enumerate(kinds)}
    plan = Plan(
        {
            layer.name: LayerPlan(of_group[layer.fusion_group or layer.name], group_size=32)
            for layer in made.info.quantizable
        }
    )
    report = export(made.checkpoint, made.info, plan, tmp_path / "packed")
    assert report["fusion"] == []
    theirs = load_exact(tmp_path / "packed")
    assert_same(simulated(made.checkpoint, made.info, plan, tmp_path / "simulated"), theirs)


@pytest.mark.parametrize(("family", "reason"), [("gpt2", "Conv1D"), ("mixtral", "experts"), ("falcon", "FalconLinear")])
def test_conv1d_experts_and_other_modules_are_refused_in_words(family, reason, tmp_path):
    info = Opened(make_family(family, tmp_path / "model")).info
    verdicts = plan_verdicts(RUNTIME, uniform_plan(info, "int4", group_size=32), info)
    reasons = {verdict.reason for verdict in verdicts.values() if verdict.status == "refused"}
    assert len(reasons) == 1 and reason in reasons.pop()


@pytest.mark.parametrize("name", ["int3", "int3_bf16s"])
def test_rounded_codes_are_stored_as_they_are(name, tmp_path):
    made = Opened(make_family("llama", tmp_path / "model"))
    plan = rounded(made, uniform_plan(made.info, name, group_size=32), tmp_path / "rounded")
    report = export(made.checkpoint, made.info, plan, tmp_path / "packed")
    assert report["rounded"] == {"exact": len(made.info.quantizable)}
    theirs = load_exact(tmp_path / "packed").state_dict()
    for layer in made.info.quantizable:
        assert torch.equal(theirs[f"{layer.name}.weight"], plan.rounded.weight(layer.name))


def test_smoothing_is_folded_into_norms_and_what_cannot_be_is_named(tmp_path):
    made = Smoothed(make_family("llama", tmp_path / "model"))
    whole = replace(uniform_plan(made.info, "int4", group_size=32), smoothing=made.smoothing())
    report = export(made.checkpoint, made.info, whole, tmp_path / "packed")
    folded = replace(whole, smoothing=whole.smoothing.folded)
    assert_same(simulated(made.checkpoint, made.info, folded, tmp_path / "simulated"), load_exact(tmp_path / "packed"))
    assert report["smoothing"]["folded"] == 4
    assert report["smoothing"]["not_stored"] == sorted(
        layer.name for layer in made.info.quantizable if layer.name.endswith(("o_proj", "down_proj"))
    )


# ------------------------------------------------------------------------------------------------------------ verdicts

LINEAR = Layer("model.layers.0.mlp.up_proj", "mlp_up", (64, 256), 0, "", False)


@pytest.mark.parametrize(
    ("made", "layer", "status", "reason"),
    [
        (LayerPlan("mxfp4_mse"), {}, "exact", ""),
        (LayerPlan("int5"), {}, "exact", ""),
        (LayerPlan("mxfp6_e2m3"), {}, "exact_in_more_bits", "E4M3"),
        (LayerPlan("int4_asym"), {}, "exact", "transformers 5.23 does not"),
        (LayerPlan("mxfp4", "mxfp8"), {}, "approximate", "inputs stay at 16 bits, not mxfp8"),
        (LayerPlan("q4_k"), {}, "refused", "no packing for q4_k"),
        (LayerPlan("mxfp8_e5m2"), {}, "refused", "no packing"),
        (LayerPlan("int4", group_size=100), {}, "refused", "no multiple of the group of 100"),
        (LayerPlan("mxfp4", group_size=16), {}, "refused", "MX blocks have 32"),
        (LayerPlan("mxfp4"), {"transposed": True}, "refused", "Conv1D"),
        (LayerPlan("mxfp4"), {"name": "model.layers.0.mlp.experts.1.up_proj"}, "refused", "experts"),
        (LayerPlan("mxfp4"), {"name": "lm_head", "category": "lm_head"}, "refused", "output matrix"),
        (LayerPlan("bf16"), {"transposed": True}, "exact", ""),
    ],
)
def test_a_layer_is_judged_by_its_format_and_its_shape(made, layer, status, reason):
    verdict = layer_verdict(replace(LINEAR, **layer), made)
    assert verdict.status == status and reason in verdict.reason


# -------------------------------------------------------------------------------------------------------------- fusion


def unlike_qkv(info) -> Plan:
    """mxfp4 everywhere, but for a wider k_proj of the first block."""
    plan = uniform_plan(info, "mxfp4")
    return replace(plan, layers={**plan.layers, "model.layers.0.self_attn.k_proj": LayerPlan("int8")})


def test_layers_that_are_stored_as_one_get_the_widest_format_and_the_cost_is_said(bundled, tmp_path):
    checkpoint, info = bundled
    plan = unlike_qkv(info)
    (group,) = unlike(fusion_groups(RUNTIME.verdict, plan, info))
    assert group.name == "model.layers.0.qkv" and "k_proj int8 g128" in group.summary
    assert group.extra_bits == pytest.approx((8.125 - 4.25) * 256 * (256 + 128))
    report = export(checkpoint, info, plan, tmp_path / "packed")
    assert [each["group"] for each in report["fusion"]] == ["model.layers.0.qkv"]
    same = repaired(plan, [group])
    assert {same.of(f"model.layers.0.self_attn.{name}_proj").wq for name in "qkv"} == {"int8"}
    assert unlike(fusion_groups(RUNTIME.verdict, same, info)) == []
    assert_same(simulated(checkpoint, info, same, tmp_path / "simulated"), load_exact(tmp_path / "packed"))


def test_unlike_layers_are_an_error_or_kept_apart_where_the_settings_say_so(bundled, tmp_path):
    checkpoint, info = bundled
    plan = unlike_qkv(info)
    with pytest.raises(UserError) as caught:
        export(checkpoint, info, plan, tmp_path / "refused", fusion="refuse")
    (problem,) = caught.value.problems
    assert problem.where == "model.layers.0.qkv" and "q_proj mxfp4 g32" in problem.what
    assert not (tmp_path / "refused").exists()
    report = export(checkpoint, info, plan, tmp_path / "apart", fusion="keep")
    assert report["fusion"] == []
    assert_same(simulated(checkpoint, info, plan, tmp_path / "simulated"), load_exact(tmp_path / "apart"))


def test_scale_rules_of_one_format_are_stored_alike(bundled):
    info = bundled[1]
    plan = uniform_plan(info, "mxfp4")
    same = replace(plan, layers={**plan.layers, "model.layers.0.self_attn.k_proj": LayerPlan("mxfp4_mse")})
    assert unlike(fusion_groups(RUNTIME.verdict, same, info)) == []


# ------------------------------------------------------------------------------------------------------ loading, texts


def test_zero_points_are_written_and_scoring_them_says_that_transformers_cannot(bundled, tmp_path):
    checkpoint, info = bundled
    export(checkpoint, info, uniform_plan(info, "int4_asym"), tmp_path / "packed")
    with pytest.raises(UserError, match="zero points"):
        load_exact(tmp_path / "packed")


def test_the_text_on_how_to_run_asks_for_float16_where_integer_scales_are(mixed, bundled, brain, tmp_path):
    text = RUNTIME.how_to_run(mixed[0], "mine")
    assert "vllm serve" in text and "--served-model-name mine --dtype float16" in text
    export(*bundled, uniform_plan(bundled[1], "mxfp8"), tmp_path / "packed")
    assert "--dtype bfloat16" in RUNTIME.how_to_run(tmp_path / "packed", "mine")
    assert "--dtype bfloat16" in RUNTIME.how_to_run(brain[1], "mine")


def test_a_plan_with_a_format_that_it_cannot_hold_is_refused_before_anything_is_written(command, demo, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"default": {"wq": "q4_k"}, "overrides": []}))
    line = ("--runtime", "compressed_tensors", "--model", demo / "model", "--plan", plan)
    made = command("export_plan.py", *line, "--output", tmp_path / "m", "--report", tmp_path / "r.json", ok=False)
    assert made.returncode == 2 and "no packing for q4_k" in made.stderr and "Traceback" not in made.stderr
    assert not (tmp_path / "m").exists()


def test_a_plan_that_packs_nothing_is_a_plain_checkpoint(bundled, tmp_path):
    export(*bundled, uniform_plan(bundled[1], "bf16"), tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    theirs = AutoModelForCausalLM.from_pretrained(bundled[0].folder, dtype=torch.float32)
    assert_same(load_exact(tmp_path / "plain"), theirs)
