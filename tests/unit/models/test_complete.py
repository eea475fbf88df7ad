"""Which files are used, and which folders are errors: missing weights, and weights that are not floats."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitplan.core.errors import UserError
from bitplan.evaluate.scores import summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import uniform_plan
from bitplan.reference.reference import make_reference
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.transformers.checkpoint import write_checkpoint
from tests.checkpoints import (
    HEAD,
    INDEX,
    TABLE,
    Q,
    change,
    forward,
    load_original,
    same,
    shards,
    transformers_logits,
    walked,
)
from tests.families import TEXT


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_one_file_comes_before_an_index_as_in_transformers(folder, tiny, tmp_path, caplog):
    tensors = load_file(folder / "model.safetensors")
    shards(folder, {"model-00001-of-00001.safetensors": {name: tensor * 0.5 for name, tensor in tensors.items()}})
    shutil.copy(tiny / "model.safetensors", folder)
    with caplog.at_level(logging.WARNING):
        info = describe(Checkpoint.open(folder))
    assert info.unused_files == ("model-00001-of-00001.safetensors", INDEX) and len(caplog.records) == 1
    assert all(name in caplog.records[0].message for name in info.unused_files)
    assert same(walked(folder), transformers_logits(folder)) and same(walked(folder), walked(tiny))
    checkpoint = Checkpoint.open(folder)
    write_checkpoint(tmp_path / "out", checkpoint, info, uniform_plan(info, "mxfp8"), QuantizedWeights())
    assert not (tmp_path / "out" / INDEX).exists()
    convert(checkpoint, tmp_path / "base.gguf")
    reference = make_reference(open_model(checkpoint), TEXT, 32, 2, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", reference, 1))["kl_mean"] < 1e-6


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
    tensors = load_file(folder / "model.safetensors")
    listed = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    shards(
        folder, {"model-00001-of-00001.safetensors": {n: t for n, t in tensors.items() if n != f"{Q}.weight"}}, listed
    )
    with pytest.raises(UserError, match=f"lacks the tensor {Q}.weight, which its index names in model-00001-of-00001"):
        describe(Checkpoint.open(folder))


def test_a_tensor_in_two_files_counts_once_and_two_values_are_refused(folder, tiny):
    tensors = load_file(folder / "model.safetensors")
    some = {TABLE: tensors[TABLE].clone(), f"{Q}.weight": tensors[f"{Q}.weight"].clone()}
    shards(folder, {"model-1.safetensors": tensors, "model-2.safetensors": some})
    assert describe(Checkpoint.open(folder)).parameters == describe(Checkpoint.open(tiny)).parameters
    save_file({**some, TABLE: tensors[TABLE] + 1}, folder / "model-2.safetensors")
    with pytest.raises(UserError, match=f"and model-1.safetensors both store {TABLE}, with different values"):
        describe(Checkpoint.open(folder))


# ------------------------------------------------------------------------------------------- what the model needs


def without(*parts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


def eight_bits(part: str, dtype: torch.dtype = torch.float8_e4m3fn) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor.to(dtype) if part in name else tensor for name, tensor in tensors.items()}


def replaced(part: str, **by: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Remove the weights of some layers, and store other tensors in their place."""

    def replace_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        layers = [name.removesuffix(".weight") for name in tensors if part in name]
        more = {f"{layer}.{end.replace('_dot_', '.')}": t.clone() for layer in layers for end, t in by.items()}
        return without(part)(tensors) | more

    return replace_tensors


WHOLE = torch.ones(8, 8, dtype=torch.int32)
REFUSED: dict[str, tuple[Callable, str]] = {
    "fewer blocks": (without("layers.1."), r"lacks the tensor model\.layers\.1\.\S+ and 8 more.*config.json belongs"),
    "no norm": (without("model.norm"), r"lacks the tensor model\.norm\.weight"),
    "a padded vocabulary": (
        lambda tensors: tensors | {name: torch.ones(2112, 64) for name in (TABLE, HEAD)},
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


def test_a_config_that_names_another_file_as_the_weights_is_refused(folder):
    change(folder, dict, transformers_weights="other.safetensors")
    with pytest.raises(UserError, match="transformers_weights names 'other.safetensors' as the weights. Call the file"):
        describe(Checkpoint.open(folder))


def test_a_language_model_that_its_part_of_the_config_calls_quantized_is_refused(folder):
    change(folder, dict, text_config={"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(UserError, match="quantized already .fp8"):
        describe(Checkpoint.open(folder))


def test_who_quantized_a_checkpoint_is_said_where_a_file_says_it(folder):
    change(folder, eight_bits("proj"))
    note = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match=r"is quantized already \(modelopt FP8\)"):
        describe(Checkpoint.open(folder))


def test_weights_in_double_precision_are_floats(folder, tiny, tmp_path):
    change(folder, lambda tensors: {name: tensor.double() for name, tensor in tensors.items()})
    assert describe(Checkpoint.open(folder)).layers == describe(Checkpoint.open(tiny)).layers
    assert same(walked(folder), walked(tiny))
    convert(Checkpoint.open(folder), tmp_path / "base.gguf")
    reference = make_reference(open_model(Checkpoint.open(folder)), TEXT, 32, 2, "fp32")
    assert summarize(score_gguf(tmp_path / "base.gguf", reference, 1))["kl_mean"] < 1e-6
