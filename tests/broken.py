"""What a user may hand to a command by mistake: broken models, plans, texts, tables and files, each made when it is asked for."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT

WEIGHTS = "model.safetensors"
BUILDERS: dict[str, Callable] = {}
TEXTS = {
    "empty.txt": b"\n \n",
    "short.txt": b"Too short.",
    "latin1.txt": "Ein M\u00e4rchen".encode("latin-1"),
    "nothing": b"",
    "broken.json": b'{"overrides": [',
    "list.json": b"[]",
    "nested.json": b"[" * 100_000,
    "binary.json": b"\xff\xfe\x00",
    "bits.json": b'{"avg_bits": 4.25}',
}
Q = "model.layers.0.self_attn.q_proj"


def builder(function: Callable) -> Callable:
    """Register a function (shelf, target) that makes the thing of its name at `target`."""
    BUILDERS[function.__name__] = function
    return function


class Shelf(dict):
    """Things by name, for `str.format_map`: those put in by hand, and those that a function of this file makes."""

    def __init__(self, folder: Path, **things: Path) -> None:
        super().__init__(things)
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        self[name] = self.folder / name
        if name in PLANS:
            self[name] = self.folder / f"{name}.json"
            self[name].write_text(json.dumps(PLANS[name]))
        elif name in CHANGES:
            _changed_model(self, self[name], *CHANGES[name])
        elif name in HEADERS:
            self[name].mkdir()
            shutil.copy(self["tiny"] / "config.json", self[name])
            (self[name] / WEIGHTS).write_bytes(HEADERS[name])
        else:
            self[name] = BUILDERS[name](self, self[name]) or self[name]
        return self[name]


def written(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


# ------------------------------------------------------------------------------------------------------------ models


def copied(shelf: Shelf, target: Path) -> Path:
    return Path(shutil.copytree(shelf["tiny"], target))


def _changed_model(shelf: Shelf, target: Path, config: dict, *without: str) -> None:
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


# ------------------------------------------------------------------------------------------------------------- plans

PLANS: dict[str, object] = {
    "plan": {"default": {"wq": "mxfp4"}},
    "plan_of_another": {"default": {"wq": "mxfp4"}, "model_fingerprint": "0" * 64},
    "plan_of_q4_k": {"default": {"wq": "q4_k"}},
    "plan_of_no_format": {"default": {"wq": "mxfp44"}},
    "plan_of_a_listed_format": {"default": {"wq": ["mxfp4"]}},
    "plan_of_weight_activations": {"overrides": [{"pattern": "*", "wq": "mxfp4", "aq": "q8_0"}]},
    "plan_of_all_outside": {"overrides": [{"pattern": "*", "wq": "q8_0", "embeddings": True}]},
    "plan_of_no_format_outside": {"overrides": [{"pattern": "lm_head", "wq": "q6_kk", "embeddings": True}]},
    "plan_of_activations_outside": {
        "overrides": [{"pattern": "lm_head", "wq": "q8_0", "aq": "mxfp8", "embeddings": True}]
    },
    "plan_of_q4_k_outside": {"overrides": [{"pattern": "model.embed_tokens", "wq": "q4_k", "embeddings": True}]},
    "plan_of_no_layer": {"overrides": [{"pattern": "model.layers.7.*", "wq": "mxfp4"}]},
    "plan_misspelt": {"overides": [{"pattern": "*", "wq": "mxfp4"}]},
    "plan_key_misspelt": {"overrides": [{"pattern": "*", "wqq": "mxfp4"}]},
    "plan_of_one_object": {"overrides": {"pattern": "*", "wq": "mxfp4"}},
    "plan_without_pattern": {"overrides": [{"wq": "mxfp4"}]},
    "plan_of_a_numbered_pattern": {"overrides": [{"pattern": 7, "wq": "mxfp4"}]},
    "plan_of_a_listed_default": {"default": ["mxfp4"]},
    "plan_of_a_worded_summary": {"search_summary": "good"},
    "plan_of_a_worded_target": {"search_summary": {"target_avg_bits": "eight"}},
    "plan_of_a_worded_skip": {"overrides": [{"pattern": "*q_proj", "skip": "no"}]},
    **{
        f"plan_group_{name}": {"default": {"wq": "mxfp4", "group_size": value}}
        for name, value in {"zero": 0, "negative": -1, "true": True, "text": "32", "half": 1.5}.items()
    },
}


# ------------------------------------------------------------------------------------------- texts, tables, GGUF files


@builder
def text(shelf, target):
    return ROOT / "demo" / "calibration.txt"


@builder
def folder(shelf, target):
    target.mkdir()


@builder
def full_folder(shelf, target):
    target.mkdir()
    (target / "mine.txt").write_text("mine")


def _table(target: Path, *lines: tuple[str, ...]) -> Path:
    target.write_text("".join("\t".join(line) + "\n" for line in lines))
    return target


@builder
def table_of_another(shelf, target):
    return _table(target, ("layer", "alpha_hill"), ("model.layers.9.mlp.up_proj", "2.0"))


@builder
def table_without_alpha(shelf, target):
    return _table(target, ("layer", "alpha"), (Q, "2.0"))


@builder
def table_of_words(shelf, target):
    return _table(target, ("layer", "alpha_hill"), (Q, "high"))


def _sensitivity(shelf: Shelf, target: Path, **changes: str) -> Path:
    """A sensitivity table of the tiny model, without palette, with other cells in its first row."""
    from bitplan.core.files import write_table
    from bitplan.models.layers import model_info
    from bitplan.plans.smoothing import Smoothing, smoothing_path, write_smoothing

    same = {"bytes": 100, "mse": 1.0, "format": "int4"}
    rows = [
        {"layer": layer.name, "inputs": f"int{bits}_tensor", **same}
        for layer in model_info(shelf["tiny"]).quantizable
        for bits in (4, 8)
    ]
    rows[0].update(changes)
    write_table(target, rows, ("layer", "format", "inputs", "smoothed", "bytes", "mse", "kld"))
    write_smoothing(smoothing_path(target), Smoothing(()))
    return target


@builder
def sensitivity(shelf, target):
    return _sensitivity(shelf, target)


@builder
def sensitivity_of_another(shelf, target):
    return _sensitivity(shelf, target, layer="model.layers.9.self_attn.q_proj")


@builder
def sensitivity_of_words(shelf, target):
    return _sensitivity(shelf, target, mse="high")


@builder
def sensitivity_with_broken_factors(shelf, target):
    from bitplan.plans.smoothing import smoothing_path

    smoothing_path(_sensitivity(shelf, target, smoothed="0123456789ab")).write_bytes(b"12345678")


@builder
def sensitivity_with_foreign_factors(shelf, target):
    return _sensitivity(shelf, target, smoothed="0123456789ab")


def _damages(target: Path, *changed: str) -> Path:
    """A table of two layers in two formats, for the allocation, with other rows besides."""
    rows = [
        f"blk.{i}.up,100,{form},{size},0.{i + size}" for i in range(2) for form, size in (("q4_K", 50), ("q8_0", 100))
    ]
    target.write_text("\n".join(["layer,params,format,bytes,kld", *rows, *changed]) + "\n")
    return target


@builder
def damages(shelf, target):
    return _damages(target)


@builder
def damages_of_nan(shelf, target):
    return _damages(target, "blk.2.up,100,q8_0,100,nan", "blk.3.up,100,q8_0,100,-1")


@builder
def damages_twice(shelf, target):
    return _damages(target, "blk.0.up,100,q4_K,50,0.5")


@builder
def damages_of_other_params(shelf, target):
    return _damages(target, "blk.0.up,90,q6_K,75,0.5")


class _Code:
    """What a pickle runs that is read without care."""

    def __reduce__(self):
        return print, ("this must not be run",)


def _pt(target: Path, content: object) -> Path:
    torch.save(content, target.with_suffix(".pt"))
    return target.with_suffix(".pt")


@builder
def pt_of_code(shelf, target):
    return _pt(target, {Q: _Code()})


@builder
def pt_of_a_list(shelf, target):
    return _pt(target, [4, 8])


@builder
def pt_cut_short(shelf, target):
    made = _pt(target, {Q: {"w_bits": 4, "a_bits": 8}})
    made.write_bytes(made.read_bytes()[:300])
    return made


@builder
def pt_of_another(shelf, target):
    return _pt(target, {"model.layers.9.mlp.up_proj": {"w_bits": 4, "a_bits": 8}})


@builder
def pt_without_factors(shelf, target):
    return _pt(target, {Q: {"w_bits": 4, "a_bits": 8, "smooth_alpha": 0.5}})


@builder
def importance_of_another(shelf, target):
    save_file({"model.layers.9.mlp.up_proj": torch.ones(64)}, target)


@builder
def importance(shelf, target):
    """The importance matrix of the tiny model."""
    from bitplan.models.layers import model_info

    save_file({layer.name: torch.ones(layer.shape[1]) for layer in model_info(shelf["tiny"]).quantizable}, target)


@builder
def importance_too_short(shelf, target):
    save_file({Q: torch.ones(3)}, target)


@builder
def reference_text(shelf, target):
    """A saved text of the tiny model, in bf16."""
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.models.walk import open_model
    from bitplan.reference.reference import make_reference, save_reference

    checkpoint, source = Checkpoint.open(shelf["tiny"]), shelf["text"]
    made = make_reference(open_model(checkpoint, "bf16"), source, 16, 2, "bf16")
    save_reference(target.with_suffix(".safetensors"), made, checkpoint.fingerprint(), source)
    return target.with_suffix(".safetensors")


@builder
def text_without_facts(shelf, target):
    save_file({"tokens": torch.ones(2, 2)}, target.with_suffix(".safetensors"), {"facts": "text"})
    return target.with_suffix(".safetensors")


@builder
def text_of_words(shelf, target):
    target.with_suffix(".safetensors").write_text("Once upon a time")
    return target.with_suffix(".safetensors")


@builder
def gguf(shelf, target):
    """The tiny model as GGUF."""
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.runtimes.gguf.convert import convert

    convert(Checkpoint.open(shelf["tiny"]), target)


@builder
def gguf_of_another(shelf, target):
    """A GGUF whose tensors have the names of the tiny model's, and other shapes and tokens."""
    from gguf import GGUFWriter

    writer = GGUFWriter(target, "llama")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", torch.ones(32, 16).numpy())
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        for block in range(2):
            writer.add_tensor(f"blk.{block}.{part}.weight", torch.ones(16, 16).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@builder
def gguf_of_no_model(shelf, target):
    """A GGUF that holds no tensor and no architecture that llama.cpp knows."""
    from gguf import GGUFWriter

    writer = GGUFWriter(target, "no_such_family")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _cut(shelf: Shelf, target: Path, share: float) -> None:
    whole = shelf["gguf"].read_bytes()
    target.write_bytes(whole[: int(share if share > 1 else share * len(whole))])


@builder
def gguf_of_10_bytes(shelf, target):
    _cut(shelf, target, 10)


@builder
def gguf_cut_in_the_header(shelf, target):
    _cut(shelf, target, 3000)


@builder
def gguf_cut_in_the_data(shelf, target):
    _cut(shelf, target, 0.7)


@builder
def gguf_with_nan(shelf, target):
    """The tiny model's file, with NaN in a tensor that every plan keeps as it is."""
    from gguf import GGUFReader

    shutil.copy(shelf["gguf"], target)
    tensor = next(each for each in GGUFReader(target, "r+").tensors if each.name == "output_norm.weight")
    tensor.data[:] = float("nan")


@builder
def results(shelf, target):
    """Results of which a plan's perplexity is missing."""
    _results(shelf, target, plan_lacks="perplexity.json")


@builder
def results_without_speed(shelf, target):
    """Results whose reference has no speed."""
    _results(shelf, target)


def _results(shelf: Shelf, target: Path, plan_lacks: str = "") -> None:
    from bitplan.report.results import BASELINE_RESULTS, PLAN_RESULTS

    for folder, names in (("plans/one", PLAN_RESULTS), ("baselines/f16", BASELINE_RESULTS)):
        (target / folder).mkdir(parents=True)
        for name in {*names.values()} - {plan_lacks}:
            (target / folder / name).parent.mkdir(exist_ok=True)
            written(target / folder / name, {})


def _tasks(target: Path, text: str) -> None:
    target.mkdir()
    (target / "mine.yaml").write_text(text)


@builder
def tasks_of_no_yaml(shelf, target):
    _tasks(target, "task: mine\n  broken: [\n")


@builder
def tasks_without_data(shelf, target):
    _tasks(
        target,
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: /no/such.jsonl}}\ntest_split: test\n",
    )


@builder
def tasks_of_unknown_kind(shelf, target):
    (target.parent / "docs.jsonl").write_text('{"page": "Once upon a time there was a fox."}\n')
    _tasks(
        target,
        "task: mine\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {target.parent / 'docs.jsonl'}}}}}\n"
        "output_type: telepathy\ntest_split: test\ndoc_to_text: ''\ndoc_to_target: '{{page}}'\n",
    )


@builder
def tasks_of_another_field(shelf, target):
    (target.parent / "docs.jsonl").write_text('{"page": "Once upon a time there was a fox."}\n')
    _tasks(
        target,
        "task: mine\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {target.parent / 'docs.jsonl'}}}}}\n"
        "output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\ndoc_to_target: '{{no_such_field}}'\n"
        "metric_list: [{metric: byte_perplexity}]\n",
    )


@builder
def files(shelf, target):
    """A folder with the small files of TEXTS."""
    target.mkdir()
    for name, content in TEXTS.items():
        (target / name).write_bytes(content)
