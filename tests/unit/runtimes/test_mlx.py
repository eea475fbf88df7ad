"""Folders for MLX: every mode's values, loaded by mlx-lm on a CPU, equal to the simulation's bit for bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitplan.core.errors import UserError
from bitplan.evaluate.scores import summarize
from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer
from bitplan.plans.plan import LayerPlan, uniform_plan
from bitplan.runtimes.fusion import fusion_groups, unlike
from bitplan.runtimes.mlx.config import rope_settings
from bitplan.runtimes.mlx.names import FAMILIES, module_name, stacked_name
from bitplan.runtimes.mlx.packing import packed, unpacked
from bitplan.runtimes.mlx.runtime import RUNTIME
from bitplan.runtimes.mlx.schemes import scheme_of
from bitplan.runtimes.mlx.write import PACKING
from bitplan.runtimes.packed.packing import check_unpacked
from bitplan.runtimes.verdicts import plan_verdicts
from tests import families
from tests.families import make_family
from tests.unit.runtimes.packed_models import TOKENS, dealt, described, exported, logits, measured_plan, simulated

PACKED = [name for name in FORMATS if scheme_of(LayerPlan(name)) is not None]
EVERYTHING = (
    *(LayerPlan(f"int{bits}", group_size=32) for bits in range(2, 9)),
    *(LayerPlan(f"int{bits}_asym", group_size=64) for bits in range(2, 9)),
    *map(LayerPlan, ("mxfp4", "mxfp8", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4_mse", "gguf_nvfp4", "bf16", "fp16")),
    *map(LayerPlan, ("int3_bf16s", "int7_bf16s", "int4_asym_bf16s")),
)
FEW = tuple(LayerPlan(name, group_size=32) for name in ("mxfp4", "int4", "int3_asym", "mxfp8", "int7"))


@pytest.fixture(scope="module")
def mx():
    pytest.importorskip("mlx_lm", reason="needs the packages mlx, mlx-cpu and mlx-lm")
    import mlx.core

    return mlx.core


def loaded(mx, folder):
    """The model as mlx-lm loads it, widened to float32."""
    from mlx_lm.utils import load_model

    net, _ = load_model(folder)
    net.set_dtype(mx.float32)
    return net


def weight_in(mx, net, module: str) -> torch.Tensor:
    """The weight of a module, float32, dequantized by MLX."""
    held = dict(net.named_modules())[module]
    if not hasattr(held, "mode"):
        return torch.from_numpy(np.array(held.weight))
    parts = (held.weight, held.scales, held.get("biases"))
    value = mx.dequantize(*parts, group_size=held.group_size, bits=held.bits, mode=held.mode)
    return torch.from_numpy(np.array(value.astype(mx.float32)))


def assert_as_simulated(mx, made, plan, packed_folder, folder) -> None:
    """Fail unless every planned matrix is the simulation's bit for bit, and the logits are within 1e-3."""
    ours, theirs, family = simulated(made, plan, folder), loaded(mx, packed_folder), made.info.model_type
    for layer in made.info.quantizable:
        if ".experts." not in layer.name:
            weight = weight_in(mx, theirs, module_name(layer.name, family))
            assert torch.equal(weight, ours.get_parameter(f"{layer.name}.weight")), layer.name
    expected = logits(ours)
    got = np.array(theirs(mx.array((TOKENS % ours.config.vocab_size).numpy())).astype(mx.float32))
    assert np.abs(got - expected.numpy()).max() <= 1e-3


@pytest.fixture(scope="module")
def everything(demo, tmp_path_factory):
    """The demo with every format that MLX holds: (model, plan, folder, report)."""
    made, folder = described(demo / "model"), tmp_path_factory.mktemp("mlx") / "model"
    names = [layer.name for layer in made.info.quantizable]
    plan = replace(
        uniform_plan(made.info, "bf16"),
        layers={name: EVERYTHING[place % len(EVERYTHING)] for place, name in enumerate(names)},
    )
    return made, plan, folder, exported(RUNTIME, made, plan, folder)


# ------------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("name", PACKED)
def test_what_is_written_unpacks_to_the_very_values_of_a_format_in_the_bits_that_are_said(name):
    values = torch.randn(24, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 24).unsqueeze(1)
    values[0], values[1, :32] = 0.0, 0.0
    form, scheme = FORMATS[name], scheme_of(LayerPlan(name))
    quantized = form.quantize(values, scheme.group, None)
    wanted = form.dequantize(quantized, scheme.group)
    tensors = packed(quantized, scheme)
    assert torch.equal(unpacked(tensors, scheme), wanted)
    bits = 8 * sum(each.numel() * each.element_size() for each in tensors.values())
    assert bits == pytest.approx(scheme.stored_bits * values.numel(), rel=1e-9)
    with pytest.raises(AssertionError, match="what mlx unpacks"):
        check_unpacked(PACKING, "a", tensors, scheme, wanted + 1)


@pytest.mark.parametrize("name", PACKED)
def test_mlx_dequantizes_what_is_written_to_the_values_of_the_format(mx, name):
    values = torch.randn(8, 256, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 8).unsqueeze(1)
    values[0] = 0.0
    form, scheme = FORMATS[name], scheme_of(LayerPlan(name))
    quantized = form.quantize(values, scheme.group, None)
    parts = packed(quantized, scheme)
    weight = mx.array(parts.pop("weight").contiguous().numpy())
    wide = {key: each if each.dtype is torch.uint8 else each.float() for key, each in parts.items()}
    made = mx.dequantize(weight, **{key: mx.array(each.numpy()) for key, each in wide.items()}, **scheme.entry)
    assert np.array_equal(np.array(made.astype(mx.float32)), form.dequantize(quantized, scheme.group).numpy())


# -------------------------------------------------------------------------------------------------------- whole models


def test_mlx_loads_a_plan_of_every_format_as_it_was_simulated(mx, everything, tmp_path):
    made, plan, folder, report = everything
    assert report["differences"] == 0 and report["fusion"] == []
    assert_as_simulated(mx, made, plan, folder, tmp_path / "simulated")


@pytest.mark.parametrize(("name", "dtype"), [("int4_bf16s", "bfloat16"), ("int4", "float32")])
def test_a_bfloat16_model_stays_one_under_scales_of_its_type(mx, demo, tmp_path, name, dtype):
    from mlx_lm.utils import load_model

    made = described(demo / "model")
    exported(RUNTIME, made, uniform_plan(made.info, name), tmp_path / "packed")
    net, _ = load_model(tmp_path / "packed")
    assert net(mx.array(TOKENS.numpy())).dtype == getattr(mx, dtype)


def test_every_matrix_has_an_entry_and_the_folder_is_sharded_with_an_index(everything):
    made, _, folder, report = everything
    config = json.loads((folder / "config.json").read_text())
    entries = {name for name in config["quantization"] if "." in name}
    assert entries == {layer.name for layer in made.info.layers if not layer.tied}
    assert config["quantization"]["model.embed_tokens"] is False and config["rope_theta"] == 10000.0
    assert config["quantization"]["model.layers.0.self_attn.q_proj"] == {"bits": 2, "group_size": 32, "mode": "affine"}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) == 5 and sorted(set(index["weight_map"].values())) == files
    assert report["file_bytes"] == sum((folder / name).stat().st_size for name in files)


# mlx-lm takes for granted that GPT-NeoX's inner size is 4 times the hidden one, and that Gemma 3 has at least 6 blocks.
SHAPES = {"gpt_neox": {"intermediate_size": 256}, "gemma3_text": {"num_hidden_layers": 6}}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_that_mlx_knows_load_as_simulated(mx, family, tmp_path, monkeypatch):
    kind = families.FAMILIES[family]
    monkeypatch.setitem(families.FAMILIES, family, replace(kind, config={**kind.config, **SHAPES.get(family, {})}))
    made = described(make_family(family, tmp_path / "model"))
    plan = dealt(made.info, FEW)
    report = exported(RUNTIME, made, plan, tmp_path / "packed")
    assert report["fusion"] == []
    assert_as_simulated(mx, made, plan, tmp_path / "packed", tmp_path / "simulated")


@pytest.mark.parametrize("family", ["gpt2", "opt", "falcon", "bloom"])
def test_families_that_it_does_not_know_are_refused_in_words(family, tmp_path):
    made = described(make_family(family, tmp_path / "model"))
    verdicts = plan_verdicts(RUNTIME, uniform_plan(made.info, "mxfp4"), made.info).values()
    assert {verdict.status for verdict in verdicts} == {"refused"}
    assert all("Conv1D" in verdict.reason or "are not known" in verdict.reason for verdict in verdicts)


def test_experts_of_one_projection_get_one_format_and_other_layers_keep_theirs(tmp_path):
    made = described(make_family("mixtral", tmp_path / "model"))
    plan = uniform_plan(made.info, "mxfp4")
    odd = {
        "model.layers.0.block_sparse_moe.experts.1.w1": LayerPlan("mxfp8"),
        "model.layers.0.self_attn.q_proj": LayerPlan("mxfp8"),
    }
    mixed = replace(plan, layers={**plan.layers, **odd})
    (group,) = unlike(fusion_groups(RUNTIME.verdict, mixed, made.info, RUNTIME.fuses))
    assert "experts" in group.name
    report = exported(RUNTIME, made, mixed, tmp_path / "packed")
    written = {row["layer"]: row["written"] for row in report["layers"]}
    assert {written[f"model.layers.0.block_sparse_moe.experts.{number}.w1"] for number in range(4)} == {"mxfp8"}
    assert (
        written["model.layers.0.self_attn.q_proj"] == "mxfp8" and written["model.layers.0.self_attn.k_proj"] == "mxfp4"
    )

    for fusion in ("refuse", "keep"):
        with pytest.raises(UserError, match="is one matrix in mlx"):
            exported(RUNTIME, made, mixed, tmp_path / fusion, fusion)


# ------------------------------------------------------------------------------------------------- names, texts, verdicts


def test_experts_are_stacked_under_the_names_of_mlx():
    assert (
        stacked_name("model.layers.3.block_sparse_moe.experts.7.w2.scales")
        == "model.layers.3.block_sparse_moe.switch_mlp.down_proj.scales"
    )
    assert (
        stacked_name("model.layers.3.mlp.experts.11.up_proj.weight") == "model.layers.3.mlp.switch_mlp.up_proj.weight"
    )
    assert stacked_name("model.layers.3.mlp.up_proj.weight") is None
    assert module_name("gpt_neox.layers.0.mlp.dense_h_to_4h", "gpt_neox") == "model.h.0.mlp.dense_h_to_4h"


def test_rotary_settings_stand_where_mlx_looks_for_them():
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    assert rope_settings({"rope_parameters": linear}) == {"rope_theta": 5e5, "rope_scaling": linear}
    plain, local = {"rope_type": "default", "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e4}
    both = {"full_attention": plain, "sliding_attention": local}
    assert rope_settings({"rope_parameters": both}) == {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    assert rope_settings({"rope_theta": 7.0}) == {}


LINEAR = Layer("model.layers.0.mlp.up_proj", "mlp_up", (64, 256), 0, "", False)


@pytest.mark.parametrize(
    ("made", "layer", "status", "reason"),
    [
        (LayerPlan("mxfp4_mse"), {}, "exact", ""),
        (LayerPlan("mxfp8"), {}, "exact", ""),
        (LayerPlan("int5"), {}, "exact_in_more_bits", "a bias of 16 bits"),
        (LayerPlan("int7", group_size=64), {}, "exact_in_more_bits", "MLX has no 7 bits"),
        (LayerPlan("int4_asym"), {}, "exact_in_more_bits", "a bias of 32 bits"),
        (LayerPlan("mxfp6_e2m3"), {}, "exact_in_more_bits", "E4M3"),
        (LayerPlan("mxfp4", "mxfp8"), {}, "approximate", "inputs stay at 16 bits, not mxfp8"),
        (LayerPlan("gguf_nvfp4", group_size=32), {}, "exact", ""),
        (LayerPlan("nvfp4"), {}, "refused", "no scale of the matrix: gguf_nvfp4"),
        (LayerPlan("nvfp4_pow2"), {}, "refused", "no scale of the matrix"),
        (LayerPlan("q4_k"), {}, "refused", "no mode for q4_k"),
        (LayerPlan("mxfp8_e5m2"), {}, "refused", "no mode"),
        (LayerPlan("int4", group_size=16), {}, "refused", "groups of 32, 64, 128 values in affine, not 16"),
        (LayerPlan("mxfp4", group_size=16), {}, "refused", "groups of 32 values in mxfp4, not 16"),
        (LayerPlan("int4", group_size=128), {"shape": (64, 96)}, "refused", "no multiple of the group of 128"),
        (LayerPlan("mxfp4"), {"transposed": True}, "refused", "Conv1D"),
        (LayerPlan("mxfp4"), {"name": "lm_head", "category": "lm_head"}, "refused", "output matrix"),
        (LayerPlan("bf16"), {}, "exact", ""),
    ],
)  # fmt: skip
def test_a_layer_is_judged_by_its_format_and_its_shape(made, layer, status, reason, everything):
    verdict = RUNTIME.verdict(replace(LINEAR, **layer), made, everything[0].info)
    assert verdict.status == status and reason in verdict.reason


def test_the_text_on_how_to_run_has_the_commands_of_mlx_lm(tmp_path):
    text = RUNTIME.how_to_run(tmp_path / "model", "mine")
    assert f"mlx_lm.generate --model {tmp_path / 'model'}" in text and "mlx_lm.server" in text


def test_a_folder_is_scored_by_mlx_with_the_figures_of_the_simulation(mx, demo, tmp_path):
    made, reference, simulation = measured_plan(demo, "int4")
    exported(RUNTIME, made, uniform_plan(made.info, "int4", group_size=32), tmp_path / "packed")
    scores = summarize(RUNTIME.score(tmp_path / "packed", reference, 1))
    for key in ("kl_mean", "ppl", "top1_agreement"):
        assert scores[key] == pytest.approx(simulation[key], rel=1e-3), key
