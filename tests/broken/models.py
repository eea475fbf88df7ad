"""Broken checkpoints: settings, tensors, tokenizers, indexes and headers of weights."""

import json
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.broken.making import WEIGHTS, Q, Shelf, builder, written


def copied(shelf: Shelf, target: Path) -> Path:
    return Path(shutil.copytree(shelf["tiny"], target))


def _changed_model(shelf: Shelf, target: Path, config: dict, without: tuple[str, ...]) -> None:
    """The tiny model with other settings, some of its files left out."""
    copied(shelf, target)
    held = {**json.loads((target / "config.json").read_text()), **config}
    written(target / "config.json", {key: value for key, value in held.items() if value is not None})
    for pattern in without:
        for file in target.glob(pattern):
            file.unlink()


CHANGES: dict[str, tuple] = {
    "no_tokenizer": ({}, "tokenizer*"),
    "no_weights": ({}, "*.safetensors"),
    "no_config": ({}, "config.json"),
    "quantized_already": ({"quantization_config": {"quant_method": "awq"}},),
    "quantized_somehow": ({"quantization_config": "4 bits"},),
    "of_no_family": ({"model_type": "no_such_family"},),
    "of_a_list": ({"model_type": ["llama"], "architectures": "Llama"},),
    "without_a_family": ({"model_type": None},),
    "of_gpt2": ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},),
    "wider_config": ({"hidden_size": 128},),
    "more_blocks": ({"num_hidden_layers": 3},),
    "no_blocks": ({"num_hidden_layers": 0},),
    "worded_config": ({"hidden_size": "wide"},),
    "no_heads": ({"num_attention_heads": 0},),
}


def _tensors_changed(shelf: Shelf, target: Path, change: Callable[[dict], None]) -> None:
    tensors = load_file(copied(shelf, target) / WEIGHTS)
    change(tensors)
    save_file(tensors, target / WEIGHTS, {"format": "pt"})


@builder
def nan_layer(shelf, target):
    _tensors_changed(shelf, target, lambda held: held[f"{Q}.weight"][3].fill_(float("nan")))


@builder
def infinite_layer(shelf, target):
    _tensors_changed(shelf, target, lambda held: held[f"{Q}.weight"][3].fill_(float("inf")))


@builder
def nan_norm(shelf, target):
    _tensors_changed(shelf, target, lambda held: held["model.norm.weight"].fill_(float("nan")))


@builder
def nan_embedding(shelf, target):
    _tensors_changed(shelf, target, lambda held: held["model.embed_tokens.weight"].fill_(float("nan")))


@builder
def nan_output(shelf, target):
    _tensors_changed(shelf, target, lambda held: held["lm_head.weight"][7].fill_(float("nan")))


@builder
def loud_output(shelf, target):
    _tensors_changed(shelf, target, lambda held: held["lm_head.weight"].mul_(1e6))


@builder
def few_tokens(shelf, target):
    def change(held):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            held[name] = held[name][:50].clone()

    _tensors_changed(shelf, target, change)
    settings = json.loads((target / "config.json").read_text())
    written(target / "config.json", {**settings, "vocab_size": 50})


@builder
def without_embedding(shelf, target):
    _tensors_changed(shelf, target, lambda held: (held.pop("model.embed_tokens.weight"), held.pop("lm_head.weight")))


@builder
def without_blocks(shelf, target):
    def change(held):
        for name in [name for name in held if "layers" in name]:
            del held[name]

    _tensors_changed(shelf, target, change)


@builder
def truncated(shelf, target):
    file = copied(shelf, target) / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])


@builder
def without_a_byte(shelf, target):
    (copied(shelf, target) / WEIGHTS).write_bytes(b"")


@builder
def folder_for_weights(shelf, target):
    file = copied(shelf, target) / WEIGHTS
    file.unlink()
    file.mkdir()


@builder
def broken_config(shelf, target):
    (copied(shelf, target) / "config.json").write_text('{"model_type": ')


@builder
def listed_config(shelf, target):
    (copied(shelf, target) / "config.json").write_text("[]")


@builder
def broken_tokenizer(shelf, target):
    (copied(shelf, target) / "tokenizer.json").write_text('{"version": "1.0"}')
    (target / "tokenizer.model").unlink()


@builder
def pickled(shelf, target):
    (copied(shelf, target) / WEIGHTS).unlink()
    (target / "pytorch_model.bin").write_bytes(b"\x80\x04")


@builder
def changed_since(shelf, target):
    """A model.json whose model has other layers by now."""
    from bitplan.core.files import write_json
    from bitplan.models.layers import model_info

    content = model_info(shelf["tiny"]).to_json()
    write_json(target.with_suffix(".json"), {**content, "path": str(shelf["without_blocks"])})
    return target.with_suffix(".json")


@builder
def moved_away(shelf, target):
    """A model.json whose model is gone."""
    from bitplan.core.files import write_json
    from bitplan.models.layers import model_info

    write_json(target.with_suffix(".json"), {**model_info(shelf["tiny"]).to_json(), "path": str(target / "gone")})
    return target.with_suffix(".json")


@builder
def of_another_schema(shelf, target):
    """A model.json of a later version of this project."""
    from bitplan.models.layers import model_info

    written(target.with_suffix(".json"), {**model_info(shelf["tiny"]).to_json(), "schema_version": 99})
    return target.with_suffix(".json")


@builder
def learned_positions(shelf, target):
    from tests.families import make_family

    make_family("gpt2", target)


def _indexed(shelf: Shelf, target: Path, content: object) -> None:
    (copied(shelf, target) / WEIGHTS).rename(target / "model-00001-of-00002.safetensors")
    written(target / "model.safetensors.index.json", content)


@builder
def lost_shard(shelf, target):
    _indexed(shelf, target, {"weight_map": {f"{Q}.weight": "model-00002-of-00002.safetensors"}})


@builder
def shard_outside(shelf, target):
    _indexed(shelf, target, {"weight_map": {f"{Q}.weight": "../tiny/model.safetensors"}})


@builder
def index_without_map(shelf, target):
    _indexed(shelf, target, {"metadata": {}})


@builder
def index_of_numbers(shelf, target):
    _indexed(shelf, target, {"weight_map": {f"{Q}.weight": 7}})


def _header(entries: object, data: int = 64, length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def _entry(start: int, stop: int, shape: tuple = (4, 2), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HEADERS = {
    "header_cut": b"\x08\x00",
    "header_of_an_absurd_length": _header({}, length=2**63),
    "header_of_no_json": _header(b"not a header at all"),
    "header_of_no_text": _header(b"\xff\xfe\xfd\xfc"),
    "header_of_a_list": _header([]),
    "header_without_offsets": _header({"a": {"dtype": "F32", "shape": [4, 2]}}),
    "header_with_overlap": _header({"a": _entry(0, 32), "b": _entry(16, 48), "c": _entry(32, 64)}),
    "header_with_a_gap": _header({"a": _entry(0, 32), "b": _entry(40, 72)}, data=72),
    "header_with_negative_offsets": _header({"a": _entry(-32, 0), "b": _entry(0, 64, (8, 2))}),
    "header_with_a_wrong_shape": _header({"a": _entry(0, 64, (3, 2))}),
    "header_with_half_values": _header({"a": _entry(0, 64, (4.5, 2))}),
}


def _with_header(shelf: Shelf, target: Path, header: bytes) -> None:
    """A checkpoint whose weights begin as given."""
    target.mkdir()
    shutil.copy(shelf["tiny"] / "config.json", target)
    (target / WEIGHTS).write_bytes(header)


BY_NAME = {
    **{name: partial(_changed_model, config=config, without=without) for name, (config, *without) in CHANGES.items()},
    **{name: partial(_with_header, header=header) for name, header in HEADERS.items()},
}
