"""What a model loads from its folder: other tensors and files are reported; missing and non-float weights are errors before anything runs."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from torch import Tensor

from bitplan.core.errors import UserError
from bitplan.evaluate.scores import summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe, model_info
from bitplan.models.loading import strip_wrappers
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import uniform_plan
from bitplan.reference.reference import make_reference
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.transformers.checkpoint import write_checkpoint
from tests.checkpoints import (
    HEAD,
    LATENT,
    SMALL,
    TABLE,
    Q,
    add,
    change,
    forward,
    load_original,
    random_model,
    same,
    transformers_logits,
    walked,
)
from tests.families import TEXT

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def block(tensors: dict[str, Tensor], index: int, called: str) -> dict[str, Tensor]:
    """The tensors of a block under another prefix."""
    prefix = f"model.layers.{index}."
    return {name.replace(prefix, called): tensor.clone() for name, tensor in tensors.items() if name.startswith(prefix)}


# ------------------------------------------------------------------------------------- what the model does not use

TOWER = {f"vision_tower.encoder.layers.0.self_attn.{part}_proj.weight": torch.ones(16, 16) for part in "qkv"}
BESIDE: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "blocks behind the last one": lambda tensors: block(tensors, 1, "model.layers.2."),
    "blocks for several tokens at once": lambda tensors: block(tensors, 1, "mtp.layers.0.") | {"mtp.fc.weight": torch.ones(64, 128)},
    "a vision tower": lambda tensors: TOWER | {"multi_modal_projector.linear_1.weight": torch.ones(64, 16)},
    "heads for values and classes": lambda tensors: {"v_head.weight": torch.ones(1, 64), "score.weight": torch.ones(2, 64)},
    "an adapter in the same file": lambda tensors: {f"{Q}.lora_A.weight": torch.ones(4, 64), f"{Q}.lora_B.weight": torch.ones(64, 4)},
    "scales that nothing reads": lambda tensors: {f"{Q}.weight_scale": torch.ones(())},
    "whole numbers": lambda tensors: {"model.layers.0.self_attn.counter.weight": torch.ones(4, 4, dtype=torch.int32)},
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_what_the_model_does_not_run_is_no_layer_and_is_named_once(kind, folder, tiny, caplog):
    more = BESIDE[kind](load_file(folder / "model.safetensors"))
    add(folder, **more)
    with caplog.at_level(logging.WARNING):
        info = describe(Checkpoint.open(folder))
    before = describe(Checkpoint.open(tiny))
    assert (info.layers, info.parameters, before.unused_tensors) == (before.layers, before.parameters, ())
    assert set(info.unused_tensors) == set(more)
    assert [
        record.message for record in caplog.records if str(len(more)) in record.message and min(more) in record.message
    ]
    assert len(caplog.records) == 1
    assert same(walked(folder), transformers_logits(folder)) and same(walked(folder), walked(tiny))


def test_masks_and_frequencies_that_are_computed_anyway_are_not_worth_a_word(folder, caplog):
    add(folder, **{f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in (0, 1)})
    with caplog.at_level(logging.WARNING):
        assert describe(Checkpoint.open(folder)).unused_tensors == () and not caplog.records


def test_a_block_that_only_predicts_a_second_token_is_neither_run_nor_in_the_file(tmp_path, demo):
    folder = random_model(tmp_path / "model", "deepseek_v3", **LATENT, num_hidden_layers=3)
    bias = {"model.layers.1.mlp.gate.e_score_correction_bias": torch.tensor([0.3, -0.3, 0.1, -0.1])}
    change(
        folder,
        lambda tensors: tensors | bias | {"model.layers.2.eh_proj.weight": torch.ones(64, 128)},
        num_hidden_layers=2,
        num_nextn_predict_layers=1,
    )
    info = describe(Checkpoint.open(folder))
    assert {layer.block for layer in info.quantizable} == {0, 1}
    assert all(name.startswith("model.layers.2.") for name in info.unused_tensors)
    assert same(walked(folder), transformers_logits(folder))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(demo / "model" / name, folder / name)
    convert(Checkpoint.open(folder), tmp_path / "base.gguf")
    reader = GGUFReader(tmp_path / "base.gguf")
    assert reader.fields["deepseek2.block_count"].contents() == 2
    assert not [tensor.name for tensor in reader.tensors if tensor.name.startswith("blk.2.")]
    reference = make_reference(open_model(Checkpoint.open(folder)), TEXT, 32, 2, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", reference, 1))["kl_mean"] < 1e-5


def test_a_file_has_the_blocks_that_run(folder, tmp_path, demo):
    change(folder, lambda tensors: tensors, num_hidden_layers=1)
    convert(Checkpoint.open(folder), tmp_path / "base.gguf")
    reader = GGUFReader(tmp_path / "base.gguf")
    assert reader.fields["llama.block_count"].contents() == 1
    assert {tensor.name.split(".")[1] for tensor in reader.tensors if tensor.name.startswith("blk.")} == {"0"}
    reference = make_reference(open_model(Checkpoint.open(folder)), TEXT, 32, 2, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", reference, 1))["kl_mean"] < 1e-6


def test_describing_says_it_once_and_writes_it_down(folder, tmp_path, command):
    add(folder, **{"mtp.fc.weight": torch.ones(64, 128)})
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    command("describe_model.py", "--model", folder, "--output", tmp_path / "model.json")
    written = json.loads((tmp_path / "model.json").read_text())
    assert written["unused_tensors"] == ["mtp.fc.weight"] and written["unused_files"] == ["consolidated.safetensors"]
    assert model_info(tmp_path / "model.json") == model_info(folder)


# ----------------------------------------------------------------------------------------------- prefixes of names

PREFIXES = {
    "of a model that also sees": lambda name: f"language_model.{name}",
    "of a newer one": lambda name: name.replace("model.", "model.language_model.", 1),
    "of torch.compile": lambda name: f"_orig_mod.{name}",
    "of torch.compile on each block": lambda name: name.replace(".self_attn", "._orig_mod.self_attn"),
    "of parallel training": lambda name: f"module.{name}",
    "of both": lambda name: f"module._orig_mod.{name}",
    "of an adapter's base": lambda name: f"base_model.model.{name}",
    "that is missing": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_prefix_changes_nothing(kind, folder, tiny, tmp_path):
    change(folder, lambda tensors: {PREFIXES[kind](name): tensor for name, tensor in tensors.items()})
    info, before = describe(Checkpoint.open(folder)), describe(Checkpoint.open(tiny))
    assert (info.parameters, info.unused_tensors) == (before.parameters, ())
    if kind != "that is missing":
        assert info.layers == before.layers
    assert torch.equal(walked(folder), walked(tiny))
    assert same(walked(folder), forward(load_original(folder, torch.float32)))
    convert(Checkpoint.open(folder), tmp_path / "one.gguf")
    convert(Checkpoint.open(tiny), tmp_path / "other.gguf")
    one, other = (
        {t.name: t.data.tobytes() for t in GGUFReader(tmp_path / f"{n}.gguf").tensors} for n in ("one", "other")
    )
    assert one == other


def test_a_name_that_fits_as_it_is_comes_before_one_with_a_prefix(folder, tiny):
    change(
        folder,
        lambda tensors: tensors | {f"module.{name}": torch.zeros_like(tensor) for name, tensor in tensors.items()},
    )
    assert same(walked(folder), walked(tiny))
    assert len(describe(Checkpoint.open(folder)).unused_tensors) == len(Checkpoint.open(tiny).tensors)


def test_only_what_wrappers_add_is_taken_off():
    assert strip_wrappers("module.model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert strip_wrappers("transformer.module_list.0.weight") == "transformer.module_list.0.weight"
    assert strip_wrappers("model.layers.0.language_model.weight") == "model.layers.0.language_model.weight"


def model_that_sees(folder: Path, family: str, text: str, vision: str, **values: object) -> Path:
    from transformers import AutoConfig, AutoModelForImageTextToText

    inner = AutoConfig.for_model(text, **{**SMALL, **values}).to_dict()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, text_config=inner, vision_config={**VISION, "model_type": vision})
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


SEES = {
    "gemma3": ("gemma3_text", "siglip_vision_model", {"head_dim": 16, "sliding_window": 64}),
    "llava": ("llama", "clip_vision_model", {}),
    "mistral3": ("mistral", "pixtral", {"head_dim": 16}),
}


@pytest.mark.parametrize("family", SEES)
def test_a_model_that_also_sees_is_its_language_model(family, tmp_path):
    from transformers import AutoModelForImageTextToText

    text, vision, values = SEES[family]
    folder = model_that_sees(tmp_path / "model", family, text, vision, **values)
    info = describe(Checkpoint.open(folder))
    assert {layer.block for layer in info.quantizable} == {0, 1} and len(info.quantizable) == 14
    assert info.unused_tensors and not [name for name in info.unused_tensors if name.startswith("language_model")]
    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    assert same(walked(folder), forward(whole))
    assert same(walked(folder), forward(load_original(folder, torch.float32)))


# --------------------------------------------------------------------------------------------- embedding and output


def test_a_head_that_is_stored_though_config_ties_it_is_the_one_that_runs(folder, tmp_path, caplog):
    change(folder, lambda tensors: tensors, tie_word_embeddings=True)
    with caplog.at_level(logging.WARNING):
        info = describe(Checkpoint.open(folder))
    assert any("config.json ties embedding and output" in record.message for record in caplog.records)
    assert not info.layers[-1].tied and info.layers[-1].name == "lm_head"
    assert info.parameters == describe(Checkpoint.open(change(folder, dict, tie_word_embeddings=False))).parameters
    change(folder, dict, tie_word_embeddings=True)
    assert same(walked(folder), transformers_logits(folder))
    convert(Checkpoint.open(folder), tmp_path / "base.gguf")
    reference = make_reference(open_model(Checkpoint.open(folder)), TEXT, 32, 2, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", reference, 1))["kl_mean"] < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_that_is_stored_and_equals_the_embedding_counts_once(folder, tmp_path, dtype, caplog):
    change(folder, lambda tensors: tensors | {HEAD: tensors[TABLE].to(dtype).clone()}, tie_word_embeddings=True)
    with caplog.at_level(logging.WARNING):
        info = describe(Checkpoint.open(folder))
    assert info.layers[-1].tied and not caplog.records
    assert info.parameters == sum(
        tensor.params for name, tensor in Checkpoint.open(folder).tensors.items() if name != HEAD
    )
    assert same(walked(folder), transformers_logits(folder))
    convert(Checkpoint.open(folder), tmp_path / "base.gguf")
    assert "output.weight" not in {tensor.name for tensor in GGUFReader(tmp_path / "base.gguf").tensors}


def test_a_tied_matrix_that_is_stored_twice_stays_tied_in_a_rewritten_checkpoint(folder, tmp_path):
    change(folder, lambda tensors: tensors | {HEAD: tensors[TABLE].clone()}, tie_word_embeddings=True)
    checkpoint = Checkpoint.open(folder)
    info = describe(checkpoint)
    write_checkpoint(tmp_path / "out", checkpoint, info, uniform_plan(info, "mxfp8"), QuantizedWeights())
    assert HEAD not in load_file(tmp_path / "out" / "model.safetensors")
    assert Checkpoint.open(tmp_path / "out").tied


def test_a_model_that_is_not_tied_and_has_no_output_is_refused(folder):
    change(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != HEAD})
    with pytest.raises(UserError, match="lacks the tensor lm_head.weight.*set tie_word_embeddings to true"):
        describe(Checkpoint.open(folder))


def test_stored_values_that_are_no_parameters_are_loaded_too(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = random_model(tmp_path / "model", "deepseek_v3", **LATENT)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    before = walked(folder)
    add(folder, **{bias: torch.tensor([0.9, -0.9, 0.5, -0.5])})
    assert same(walked(folder), transformers_logits(folder)) and not same(walked(folder), before)
    module = AutoModelForCausalLM.from_pretrained(folder)
    assert describe(Checkpoint.open(folder)).parameters == sum(parameter.numel() for parameter in module.parameters())


# --------------------------------------------------------------------------------------------- a rewritten checkpoint


def test_a_rewritten_checkpoint_keeps_names_and_what_the_model_does_not_load(folder, tmp_path):
    change(folder, lambda tensors: {f"language_model.{n}": t for n, t in tensors.items()} | TOWER)
    checkpoint = Checkpoint.open(folder)
    info = describe(checkpoint)
    report = write_checkpoint(tmp_path / "out", checkpoint, info, uniform_plan(info, "mxfp4"), QuantizedWeights())
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert report["changed"] == 14 and before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {f"language_model.{layer.name}.weight" for layer in info.quantizable}
    assert describe(Checkpoint.open(tmp_path / "out")).layers == info.layers
