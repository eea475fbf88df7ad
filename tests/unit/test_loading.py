"""What a model loads of its folder: what else lies there is named, what is absent or no float is refused, before anything runs."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitplan.errors import UserError
from bitplan.evaluate.gguf import score_gguf
from bitplan.evaluate.head import Head
from bitplan.evaluate.scores import summarize
from bitplan.evaluate.teacher import make_teacher
from bitplan.export.checkpoint import write_checkpoint
from bitplan.export.convert import convert
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import ModelInfo, describe, model_info
from bitplan.models.loading import unwrapped
from bitplan.models.original import load_original
from bitplan.models.walk import open_model
from bitplan.plan import uniform
from bitplan.quantized_walk import QuantizedWeights
from tests.families import GROUPED, TEXT

TOKENS = torch.arange(3, 67).view(2, 32)
Q = "model.layers.0.self_attn.q_proj"
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"
SMALL = {**GROUPED, "vocab_size": 2048, "tie_word_embeddings": False}
LATENT = {
    **{"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    **{"n_group": 1, "topk_group": 1, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 16},
    **{"qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4},
}
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


def change(folder: Path, what: Callable[[dict[str, Tensor]], dict[str, Tensor]], **config: object) -> Path:
    """Replace the tensors of a checkpoint by what a function makes of them, and some settings of its config.json."""
    made = what(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def add(folder: Path, **tensors: Tensor) -> Path:
    return change(folder, lambda held: held | tensors)


def walked(folder: Path) -> Tensor:
    checkpoint = Checkpoint.open(folder)
    head = Head.of(checkpoint)
    return torch.stack([head.logits(hidden) for hidden in open_model(checkpoint).run(TOKENS)])


def forward(module: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return module(input_ids=TOKENS).logits


def transformers_logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    return forward(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def names(info: ModelInfo) -> list[str]:
    return [layer.name for layer in info.layers]


def block(held: dict[str, Tensor], index: int, called: str) -> dict[str, Tensor]:
    """The tensors of a block under another prefix."""
    prefix = f"model.layers.{index}."
    return {name.replace(prefix, called): tensor.clone() for name, tensor in held.items() if name.startswith(prefix)}


# ------------------------------------------------------------------------------------- what lies beside the model

TOWER = {f"vision_tower.encoder.layers.0.self_attn.{part}_proj.weight": torch.ones(16, 16) for part in "qkv"}
BESIDE: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "blocks behind the last one": lambda held: block(held, 1, "model.layers.2."),
    "blocks for several tokens at once": lambda held: block(held, 1, "mtp.layers.0.") | {"mtp.fc.weight": torch.ones(64, 128)},
    "a vision tower": lambda held: TOWER | {"multi_modal_projector.linear_1.weight": torch.ones(64, 16)},
    "heads for values and classes": lambda held: {"v_head.weight": torch.ones(1, 64), "score.weight": torch.ones(2, 64)},
    "an adapter in the same file": lambda held: {f"{Q}.lora_A.weight": torch.ones(4, 64), f"{Q}.lora_B.weight": torch.ones(64, 4)},
    "scales that nothing reads": lambda held: {f"{Q}.weight_scale": torch.ones(())},
    "whole numbers": lambda held: {"model.layers.0.self_attn.counter.weight": torch.ones(4, 4, dtype=torch.int32)},
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


def test_a_block_that_only_predicts_a_second_token_is_not_run_statistics_and_file_do_without(tmp_path, demo):
    folder = random_model(tmp_path / "model", "deepseek_v3", **LATENT, num_hidden_layers=3)
    change(
        folder,
        lambda held: held | {"model.layers.2.eh_proj.weight": torch.ones(64, 128)},
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


def test_a_file_has_the_blocks_that_run(folder, tmp_path, demo):
    change(folder, lambda held: held, num_hidden_layers=1)
    convert(Checkpoint.open(folder), tmp_path / "base.gguf")
    reader = GGUFReader(tmp_path / "base.gguf")
    assert reader.fields["llama.block_count"].contents() == 1
    assert {tensor.name.split(".")[1] for tensor in reader.tensors if tensor.name.startswith("blk.")} == {"0"}
    teacher = make_teacher(open_model(Checkpoint.open(folder)), TEXT, 32, 2, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", teacher, 1))["kl_mean"] < 1e-6


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
    change(folder, lambda held: {PREFIXES[kind](name): tensor for name, tensor in held.items()})
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
    change(folder, lambda held: held | {f"module.{name}": torch.zeros_like(tensor) for name, tensor in held.items()})
    assert same(walked(folder), walked(tiny))
    assert len(describe(Checkpoint.open(folder)).unused_tensors) == len(Checkpoint.open(tiny).tensors)


def test_only_what_wrappers_add_is_taken_off():
    assert unwrapped("module.model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert unwrapped("transformer.module_list.0.weight") == "transformer.module_list.0.weight"
    assert unwrapped("model.layers.0.language_model.weight") == "model.layers.0.language_model.weight"


def random_model(folder: Path, family: str, **values: object) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL, **values})).save_pretrained(folder)
    return folder


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
    change(folder, lambda held: held, tie_word_embeddings=True)
    with caplog.at_level(logging.WARNING):
        info = describe(Checkpoint.open(folder))
    assert any("config.json ties embedding and output" in record.message for record in caplog.records)
    assert not info.layers[-1].tied and info.layers[-1].name == "lm_head"
    assert info.parameters == describe(Checkpoint.open(change(folder, dict, tie_word_embeddings=False))).parameters
    change(folder, dict, tie_word_embeddings=True)
    assert same(walked(folder), transformers_logits(folder))
    convert(Checkpoint.open(folder), tmp_path / "base.gguf")
    teacher = make_teacher(open_model(Checkpoint.open(folder)), TEXT, 32, 2, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", teacher, 1))["kl_mean"] < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_that_is_stored_and_equals_the_embedding_counts_once(folder, tmp_path, dtype, caplog):
    change(folder, lambda held: held | {HEAD: held[TABLE].to(dtype).clone()}, tie_word_embeddings=True)
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
    change(folder, lambda held: held | {HEAD: held[TABLE].clone()}, tie_word_embeddings=True)
    checkpoint = Checkpoint.open(folder)
    info = describe(checkpoint)
    write_checkpoint(tmp_path / "out", checkpoint, info, uniform(info, "mxfp8"), QuantizedWeights())
    assert HEAD not in load_file(tmp_path / "out" / "model.safetensors")
    assert Checkpoint.open(tmp_path / "out").tied


def test_a_model_that_is_not_tied_and_has_no_output_is_refused(folder):
    change(folder, lambda held: {name: tensor for name, tensor in held.items() if name != HEAD})
    with pytest.raises(UserError, match="lacks the tensor lm_head.weight.*set tie_word_embeddings to true"):
        describe(Checkpoint.open(folder))


# ------------------------------------------------------------------------------------------------------------ files


def shards(folder: Path, parts: dict[str, dict[str, Tensor]], listed: dict[str, str] | None = None) -> Path:
    """Store a checkpoint as some files with an index, which lists what they hold or something else."""
    (folder / "model.safetensors").unlink()
    for file, tensors in parts.items():
        save_file(tensors, folder / file)
    held = {name: file for file, tensors in parts.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": held if listed is None else listed}))
    return folder


def test_one_file_comes_before_an_index_as_in_transformers(folder, tiny, tmp_path, caplog):
    held = load_file(folder / "model.safetensors")
    shards(folder, {"model-00001-of-00001.safetensors": {name: tensor * 0.5 for name, tensor in held.items()}})
    shutil.copy(tiny / "model.safetensors", folder)
    with caplog.at_level(logging.WARNING):
        info = describe(Checkpoint.open(folder))
    assert info.unused_files == ("model-00001-of-00001.safetensors", INDEX) and len(caplog.records) == 1
    assert all(name in caplog.records[0].message for name in info.unused_files)
    assert same(walked(folder), transformers_logits(folder)) and same(walked(folder), walked(tiny))
    checkpoint = Checkpoint.open(folder)
    write_checkpoint(tmp_path / "out", checkpoint, info, uniform(info, "mxfp8"), QuantizedWeights())
    assert not (tmp_path / "out" / INDEX).exists()
    convert(checkpoint, tmp_path / "base.gguf")
    teacher = make_teacher(open_model(checkpoint), TEXT, 32, 2, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", teacher, 1))["kl_mean"] < 1e-6


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "consolidated.safetensors", "pytorch_model.bin", "model-00002-of-00002.safetensors"],
)
def test_other_weights_in_the_folder_are_left_alone_and_named(name, folder, tiny, caplog):
    save_file({f"base_model.model.{Q}.lora_A.weight": torch.ones(4, 64), TABLE: torch.ones(3, 3)}, folder / name)
    with caplog.at_level(logging.WARNING):
        info = describe(Checkpoint.open(folder))
    assert info.layers == describe(Checkpoint.open(tiny)).layers and info.unused_files == (name,)
    assert [name in record.message for record in caplog.records] == [True]


def test_the_original_is_loaded_without_an_adapter_beside_it(folder, tiny):
    low = {
        f"base_model.model.{Q}.lora_A.weight": torch.ones(4, 64),
        f"base_model.model.{Q}.lora_B.weight": torch.ones(64, 4),
    }
    save_file(low, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}))
    assert same(forward(load_original(folder, torch.float32)), walked(tiny))


def test_weights_that_transformers_would_not_find_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(UserError, match="holds weights.safetensors, but neither model.safetensors nor .*Rename"):
        Checkpoint.open(folder)


def test_a_tensor_that_the_index_names_and_its_file_lacks_is_named(folder):
    held = load_file(folder / "model.safetensors")
    listed = dict.fromkeys(held, "model-00001-of-00001.safetensors")
    shards(folder, {"model-00001-of-00001.safetensors": {n: t for n, t in held.items() if n != f"{Q}.weight"}}, listed)
    with pytest.raises(UserError, match=f"lacks the tensor {Q}.weight, which its index names in model-00001-of-00001"):
        describe(Checkpoint.open(folder))


def test_a_tensor_in_two_files_counts_once_and_two_values_are_refused(folder, tiny):
    held = load_file(folder / "model.safetensors")
    some = {TABLE: held[TABLE].clone(), f"{Q}.weight": held[f"{Q}.weight"].clone()}
    shards(folder, {"model-1.safetensors": held, "model-2.safetensors": some})
    assert describe(Checkpoint.open(folder)).parameters == describe(Checkpoint.open(tiny)).parameters
    save_file({**some, TABLE: held[TABLE] + 1}, folder / "model-2.safetensors")
    with pytest.raises(UserError, match=f"and model-1.safetensors both store {TABLE}, with different values"):
        describe(Checkpoint.open(folder))


# ------------------------------------------------------------------------------------------- what the model needs


def without(*parts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda held: {name: tensor for name, tensor in held.items() if not any(part in name for part in parts)}


def eight_bits(part: str, dtype: torch.dtype = torch.float8_e4m3fn) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda held: {name: tensor.to(dtype) if part in name else tensor for name, tensor in held.items()}


def replaced(part: str, **by: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Take the weights of some layers away, and store other tensors in their place."""

    def made(held: dict[str, Tensor]) -> dict[str, Tensor]:
        layers = [name.removesuffix(".weight") for name in held if part in name]
        more = {f"{layer}.{end.replace('_dot_', '.')}": t.clone() for layer in layers for end, t in by.items()}
        return without(part)(held) | more

    return made


WHOLE = torch.ones(8, 8, dtype=torch.int32)
REFUSED: dict[str, tuple[Callable, str]] = {
    "fewer blocks": (without("layers.1."), r"lacks the tensor model\.layers\.1\.\S+ and 8 more.*config.json belongs"),
    "no norm": (without("model.norm"), r"lacks the tensor model\.norm\.weight"),
    "a padded vocabulary": (
        lambda held: held | {name: torch.ones(2112, 64) for name in (TABLE, HEAD)},
        r"embed_tokens.weight has shape \(2112, 64\), config.json asks for \(2048, 64\); so have 1 more",
    ),
    "some weights in float8": (eight_bits(".mlp."), r"quantized already: it stores \S+mlp\S+ and 5 more as F8_E4M3.*bf16"),
    "one weight in whole numbers": (eight_bits(f"{Q}.", torch.int8), rf"stores {Q}.weight as I8\b.*full precision"),
    "packed by GPTQ": (
        replaced("q_proj", qweight=WHOLE, qzeros=WHOLE, scales=torch.ones(8)),
        rf"lacks the tensor {Q}.weight and 1 more, and stores \S+q_proj.\w+ and 5 more: it is quantized already.*bf16",
    ),
    "packed by compressed-tensors": (replaced("up_proj", weight_packed=WHOLE), "weight_packed and 1 more: it is quantized"),
    "an adapter that is not merged": (
        replaced("q_proj", base_layer_dot_weight=torch.ones(64, 64), lora_A_dot_weight=torch.ones(4, 64)),
        "an adapter that is not merged. Merge it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_weights_that_the_model_would_lack_are_refused_when_it_is_described(kind, folder, tmp_path):
    what, expected = REFUSED[kind]
    change(folder, what)
    with pytest.raises(UserError, match=expected):
        describe(Checkpoint.open(folder))
    with pytest.raises(UserError, match=expected):
        convert(Checkpoint.open(folder), tmp_path / "base.gguf")


def test_who_quantized_a_checkpoint_is_said_where_a_file_says_it(folder):
    change(folder, eight_bits("proj"))
    note = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match=r"is quantized already \(modelopt FP8\)"):
        describe(Checkpoint.open(folder))


def test_weights_in_double_precision_are_floats(folder, tiny, tmp_path):
    change(folder, lambda held: {name: tensor.double() for name, tensor in held.items()})
    assert describe(Checkpoint.open(folder)).layers == describe(Checkpoint.open(tiny)).layers
    assert same(walked(folder), walked(tiny))
    convert(Checkpoint.open(folder), tmp_path / "base.gguf")
    teacher = make_teacher(open_model(Checkpoint.open(folder)), TEXT, 32, 2, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", teacher, 1))["kl_mean"] < 1e-6


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
    change(folder, lambda held: {f"language_model.{n}": t for n, t in held.items()} | TOWER)
    checkpoint = Checkpoint.open(folder)
    info = describe(checkpoint)
    made = write_checkpoint(tmp_path / "out", checkpoint, info, uniform(info, "mxfp4"), QuantizedWeights())
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert made["changed"] == 14 and before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {f"language_model.{layer.name}.weight" for layer in info.quantizable}
    assert describe(Checkpoint.open(tmp_path / "out")).layers == info.layers
