"""Broken texts, tables, pickles, GGUF files, results and tasks."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.broken.making import Q, Shelf, builder, written
from tests.conftest import ROOT

TEXTS = {
    "empty.txt": b"\n \n",
    "short.txt": b"Too short.",
    "latin1.txt": "Ein M\u00e4rchen".encode("latin-1"),
    "nothing": b"",
    "broken.json": b'{"overrides": [',
    "list.json": b"[]",
    "nested.json": b"[" * 100_000,
    "binary.json": b"\xff\xfe\x00",
    "low.yaml": b"plans: {low: {method: optimal, target_avg_bits: 1}}",
    "long.yaml": b"calibration: {sequences: 9999}",
    "bits.json": b'{"avg_bits": 4.25}',
}


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
