"""A catalogue of bad input: whatever is wrong is told in three lines at most, with the culprit and a way out.

Each case is a command line as a person would type it; words in braces are made by `tests.broken`, {tmp} is an empty folder of the
case. Nothing may be left in {tmp}, and where the outputs were there before, they are the same afterwards.
"""

import hashlib
import logging
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from tests.broken import Shelf
from tests.conftest import ROOT, SCRIPTS

LOG_LINE = re.compile(r"\d\d:\d\d:\d\d (INFO|WARNING) ")
COMMANDS = sorted(path.name for path in SCRIPTS.glob("*.py") if "__main__" in path.read_text())


@dataclass(frozen=True)
class Told:
    """How a command ended: its exit code, and its lines on stderr without those of the log."""

    code: int
    lines: tuple[str, ...]
    log: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def told(code: int, stderr: str) -> Told:
    lines = [line for line in stderr.splitlines() if line.strip()]
    logged = [line for line in lines if LOG_LINE.match(line)]
    return Told(code, tuple(line for line in lines if line not in logged), tuple(logged))


@pytest.fixture(scope="module")
def shelf(tiny, tmp_path_factory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("broken"), tiny=tiny)


@pytest.fixture
def invoke(monkeypatch, capfd):
    """A function that runs a command of scripts/ in this process."""
    threads, root = torch.get_num_threads(), logging.getLogger()
    kept = root.handlers[:], root.level

    def run(name: str, *words: str) -> Told:
        # With handlers of pytest's in place, the command would not set up its own log.
        root.handlers[:] = []
        monkeypatch.setattr(sys, "argv", [name, *words])
        monkeypatch.chdir(ROOT)
        capfd.readouterr()
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        finally:
            root.handlers[:], root.level = kept[0], kept[1]
            torch.set_num_threads(threads)
        return told(code, capfd.readouterr().err)

    return run


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, files with a hash of what they hold."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder below a folder: what a command may read and must not touch."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def filled(word: str, shelf: Shelf, tmp: Path) -> str:
    """A word of a command line with {tmp} and the things that it names put in."""
    shelf["tmp"] = tmp
    return word.format_map(shelf)


def check(made: Told, names: str, way_out: str, code: int = 2) -> None:
    assert made.code == code, made
    assert "Traceback" not in made.text and 1 <= len(made.lines) <= 3 and len(made.log) <= 4, made
    assert names in made.text and way_out in made.text, made


PPL = "perplexity.py --model {tiny} --text {text} --length 16 --sequences 2 --output {tmp}/out.json"
STATS = "layer_stats.py --calibration {text} --length 16 --sequences 2 --output {tmp}/out.tsv"
ADAPTIVE = (
    "adaptive_quantization_search.py --model {tiny} --calibration {text} --length 16 --sequences 2"
    " --output-config {tmp}/c.json --output-plan {tmp}/p.json"
)
RANDOM = "random_mixed_precision_quantization.py --model {tiny} --output-config {tmp}/c.json"
DESCRIBE = "describe_model.py --output {tmp}/out.json --model"
REFERENCE = "teacher.py --length 16 --sequences 2 --output {tmp}/out.safetensors"
BITS = "calculate_avg_bits.py --model {tiny} --json {tmp}/bits.json --output {tmp}/layers.csv --config"
QUANTIZE = "quantize_model.py --layer-config {plan} --output {tmp}/out --save-plan {tmp}/p.json --model"
EXPORT = "export_gguf.py --plan {plan} --output {tmp}/out.gguf --report {tmp}/out.json --model"
OF_RUNTIME = "export_plan.py --model {tiny} --plan {plan} --output {tmp}/packed --report {tmp}/out.json --runtime"
BASELINE = "baseline_gguf.py --output {tmp}/out.gguf --base"
SPEED = "compare_real_quant.py --output {tmp}/speed.json --max_tokens 2 --repeats 1 --warmup 0 --models"
TASKS = "eval_with_lm_eval.py --model {tiny} --limit 1 --output {tmp}/tasks.json"
SENSITIVITY = "sensitivity.py --model {tiny} --calibration {text} --length 16 --sequences 2 --output {tmp}/s.tsv"
MERGE = "merge_sensitivity.py --model {tiny} --output {tmp}/s.tsv --tables"
SEARCH = "mixed_precision_ptq.py --model_id {tiny} --length 16 --sequences 2 --output {tmp}/m.pt"
ALLOCATE = "allocate_bits.py --target-avg-bits 6 --output {tmp}/front.json --figure {tmp}/front.svg --sensitivity"
SPARSEGPT = "sparsegpt_enhanced.py --seqlen 16 --nsamples 2 --output-plan {tmp}/p.json --output-stats {tmp}/l.tsv"
MEASURED = f"{SEARCH} --calibration {{text}}"
FOUND = f"{SEARCH} --sensitivity {{sensitivity}}"
OFFICIAL = "export_gguf_official.py --model_id {tiny} --output {tmp}/m.gguf --config"
SIMULATED = (
    "test_mixed_precision.py --model_id {tiny} --text {text} --length 16 --sequences 2 --output {tmp}/s.json --config"
)
THREE = "compare_real_quant.py --skip_original --output {tmp}/speed.json --q4km_path {gguf} --mixed_path"
REPORT = (
    "report.py --model {tiny} --plan one --baseline f16 --output {tmp}/c.tsv --text {tmp}/c.txt --page {tmp}/c.html"
    " --figure {tmp}/c.svg --results"
)
AGAIN, WEIGHTS = "Download the checkpoint again", "Check that config.json belongs to the weights"
SOUND, HEADER = "Get a sound checkpoint", "its header is broken"

CASES = [
    # -- numbers and words given to flags
    ("a misspelt flag", "describe_model.py --modle {tiny} --output {tmp}/o", "--modle", "Did you mean '--model'"),
    ("a flag of old", f"{RANDOM} --ratio 0.5", "--ratio", "--help lists the flags"),
    ("a ratio over 1", f"{RANDOM} --mxfp4-ratio 1.2", "--mxfp4-ratio: 1.2", "from 0 to 1"),
    ("a negative ratio", f"{RANDOM} --bf16-ratio -0.1", "--bf16-ratio: -0.1", "from 0 to 1"),
    ("ratios over 1 together", f"{RANDOM} --mxfp4-ratio 0.9 --bf16-ratio 0.2", "add up to 1.1", "Lower one of them"),
    ("a ratio that is a word", f"{RANDOM} --mxfp4-ratio half", "'half'", "--help lists the flags"),
    ("a negative seed", f"{RANDOM} --seed -1", "--seed: -1", "from 0"),
    ("a seed of 400 digits", f"{RANDOM} --seed {'9' * 400}", "--seed: 999", "from 0"),
    ("a group of 0", f"{RANDOM} --group-size 0", "--group-size: 0", "from 1"),
    ("a negative step", f"{ADAPTIVE} --step-size -0.5", "--step-size: -0.5", "over 0"),
    ("a step of 0", f"{ADAPTIVE} --step-size 0", "--step-size: 0", "over 0"),
    ("a step of NaN", f"{ADAPTIVE} --step-size nan", "--step-size: nan", "over 0"),
    ("an infinite step", f"{ADAPTIVE} --step-size inf", "--step-size: inf", "over 0"),
    ("a threshold of 0", f"{ADAPTIVE} --ppl-threshold 0", "--ppl-threshold: 0", "over 0"),
    ("a threshold of NaN", f"{ADAPTIVE} --ppl-threshold nan", "--ppl-threshold: nan", "over 0"),
    ("a target that is a word", f"{ADAPTIVE} --target-avg-bits eight", "'eight'", "--help lists the flags"),
    ("an unknown search", f"{ADAPTIVE} --search random", "'random'", "linear"),
    ("an unknown format to search", f"{ADAPTIVE} --formats mxfp4 mxfp88", "mxfp88", "Did you mean 'mxfp8'"),
    ("windows of 1 token", f"{PPL} --length 1", "--length: 1", "from 2"),
    ("no windows", f"{PPL} --sequences 0", "--sequences: 0", "from 1"),
    ("half a window", f"{PPL} --sequences 0.5", "'0.5'", "--help lists the flags"),
    ("an unknown dtype", f"{PPL} --dtype fp8", "'fp8'", "fp32"),
    ("an unknown device", f"{PPL} --device abc", "'abc'", "Use cpu"),
    ("a device that is absent", f"{PPL} --device cuda:99", "cuda:99", "Use --device cpu"),
    ("a plan and a file at once", f"{PPL} --plan {{plan}} --gguf {{gguf}}", "--gguf", "--help lists the flags"),
    ("threads below 1", "quantize_model.py --model {tiny} --layer-config {plan} --threads -1", "--threads: -1", "from 1"),
    ("an unknown format to compare", "compare_formats.py --model {tiny} --text {text} --formats q4_kk", "q4_kk", "Did you mean 'q4_k'"),
    ("an unknown format to describe", "describe_formats.py --formats mxfp5", "mxfp5", "Did you mean"),
    ("no values to draw", "describe_formats.py --values 0", "--values: 0", "from 1"),
    ("an unknown type to convert to", "convert_gguf.py --model {tiny} --type q8 --output {tmp}/o", "'q8'", "f16"),
    ("an unknown recipe", f"{BASELINE} {{gguf}} --recipe q4_x", "q4_x", "Known: "),
    ("a tolerance below 0", f"{BITS} {{plan}} --tolerance -1", "--tolerance: -1", "from 0"),
    ("one token to generate", f"{SPEED} a={{gguf}} --max_tokens 1", "--max_tokens: 1", "from 2"),
    ("no documents", f"{TASKS} --limit 0", "--limit: 0", "from 1"),
    # -- files that are not there, or of another kind
    ("a model that is not there", f"{DESCRIBE} {{tmp}}/none", "none: is not a model folder", "Give the folder"),
    ("a model that is a text", f"{DESCRIBE} {{text}}", "calibration.txt", "Give the folder"),
    ("a folder that is no model", f"{DESCRIBE} {{full_folder}}", "no config.json", "Give the folder"),
    ("a name of 300 letters", f"{DESCRIBE} {'a' * 300}", "aaaa: is not a model folder", "Give the folder"),
    ("a plan that is not there", f"{PPL} --plan {{tmp}}/p.json", "p.json: does not exist", "Give: config.json or plan.json"),
    ("a plan that is a folder", f"{PPL} --plan {{folder}}", "is a folder", "Give: config.json or plan.json"),
    ("a text that is not there", f"{REFERENCE} --model {{tiny}} --text {{tmp}}/a.txt", "a.txt: does not exist", "UTF-8 text"),
    ("a text that is a folder", f"{REFERENCE} --model {{tiny}} --text {{folder}}", "is a folder", "UTF-8 text"),
    ("a file to score that is not there", f"{PPL} --gguf {{tmp}}/m.gguf", "m.gguf: does not exist", "Give: GGUF"),
    ("importance that is not there", f"{PPL} --imatrix {{tmp}}/i", "--imatrix", "beside layer_stats.tsv"),
    ("statistics that are not there", f"{ADAPTIVE} --layer-stats {{tmp}}/s", "--layer-stats", "layer_stats.tsv"),
    ("a base that is not there", f"{BASELINE} {{tmp}}/b.gguf", "b.gguf: does not exist", "Give: the model as GGUF"),
    ("a base that is a folder", f"{BASELINE} {{folder}}", "is a folder", "Give: the model as GGUF"),
    ("a folder of tasks that is not there", f"{TASKS} --include-path {{tmp}}/t", "--include-path", "YAML"),
    ("a folder of tasks that is a file", f"{TASKS} --include-path {{plan}}", "is not a folder", "YAML"),
    ("results that are not there", f"{REPORT} {{tmp}}/results", "--results", "folder of the model's results"),
    ("three files that are not there", f"{PPL} --plan {{tmp}}/p --imatrix {{tmp}}/i", "--imatrix", "--plan"),
    ("a calibration text that is not there", "example_adaptive_search.py --calibration {tmp}/c", "--calibration", "text"),
    # -- texts
    ("an empty text", f"{REFERENCE} --model {{tiny}} --text {{files}}/empty.txt", "empty.txt: is empty", "Give a text"),
    ("a file of no bytes", f"{REFERENCE} --model {{tiny}} --text {{files}}/nothing", "nothing: is empty", "Give a text"),
    ("a text shorter than a window", f"{REFERENCE} --model {{tiny}} --text {{files}}/short.txt", "2 windows of 16", "longer text"),
    ("a text that is not UTF-8", f"{REFERENCE} --model {{tiny}} --text {{files}}/latin1.txt", "(byte 5)", "Save it as UTF-8"),
    ("more windows than the text has", f"{PPL} --sequences 99999999", "99999999 windows", "longer text"),
    ("windows beyond learned positions", f"{REFERENCE} --model {{learned_positions}} --text {{text}} --length 512",
     "512 tokens", "Use --length 128"),
    ("a document that is not UTF-8", "describe_formats.py --output {files}/latin1.txt", "latin1.txt", "UTF-8"),
    ("a document without a place", "describe_formats.py --output {files}/short.txt", "short.txt", "Add these two lines"),
    # -- saved texts
    ("a saved text of another model", "perplexity.py --model {learned_positions} --text {reference_text} --output {tmp}/o",
     "another model", "scripts/teacher.py"),
    ("a saved text of another dtype", "perplexity.py --model {tiny} --text {reference_text} --output {tmp}/o", "bf16", "Use --dtype bf16"),
    ("weights for a saved text", "perplexity.py --model {tiny} --text {tiny}/model.safetensors --output {tmp}/o",
     "model.safetensors: is no saved text", "scripts/teacher.py"),
    ("a saved text without facts", "perplexity.py --model {tiny} --text {text_without_facts} --output {tmp}/o",
     "is no saved text", "scripts/teacher.py"),
    ("words called a saved text", "perplexity.py --model {tiny} --text {text_of_words} --output {tmp}/o",
     "is no saved text", "scripts/teacher.py"),
    # -- models: headers
    ("a header cut short", f"{DESCRIBE} {{header_cut}}", "model.safetensors: is cut short", AGAIN),
    ("a header of an absurd length", f"{DESCRIBE} {{header_of_an_absurd_length}}", "model.safetensors: is cut short", AGAIN),
    ("a header that is no JSON", f"{DESCRIBE} {{header_of_no_json}}", HEADER, AGAIN),
    ("a header that is no text", f"{DESCRIBE} {{header_of_no_text}}", HEADER, AGAIN),
    ("a header that is a list", f"{DESCRIBE} {{header_of_a_list}}", HEADER, AGAIN),
    ("a header without offsets", f"{DESCRIBE} {{header_without_offsets}}", HEADER, AGAIN),
    ("tensors that overlap", f"{DESCRIBE} {{header_with_overlap}}", "tensor b", AGAIN),
    ("tensors with a gap", f"{DESCRIBE} {{header_with_a_gap}}", "tensor b", AGAIN),
    ("negative offsets", f"{DESCRIBE} {{header_with_negative_offsets}}", HEADER, AGAIN),
    ("a shape of half values", f"{DESCRIBE} {{header_with_half_values}}", HEADER, AGAIN),
    ("a shape that needs fewer bytes", f"{DESCRIBE} {{header_with_a_wrong_shape}}", "tensor a", AGAIN),
    ("weights cut short", f"{DESCRIBE} {{truncated}}", "model.safetensors", AGAIN),
    ("weights of no bytes", f"{DESCRIBE} {{without_a_byte}}", "model.safetensors", AGAIN),
    ("a folder called weights", f"{DESCRIBE} {{folder_for_weights}}", "model.safetensors: is not a file", AGAIN),
    ("a missing shard", f"{DESCRIBE} {{lost_shard}}", "lacks model-00002-of-00002.safetensors", AGAIN),
    ("a shard outside the folder", f"{DESCRIBE} {{shard_outside}}", "'../tiny/model.safetensors'", AGAIN),
    ("an index without a map", f"{DESCRIBE} {{index_without_map}}", "index.json: has no weight_map", AGAIN),
    ("an index of numbers", f"{DESCRIBE} {{index_of_numbers}}", "index.json: has no weight_map", AGAIN),
    # -- models: what is in them
    ("a model without weights", f"{DESCRIBE} {{no_weights}}", "holds no safetensors file", "save_pretrained"),
    ("a model without config.json", f"{DESCRIBE} {{no_config}}", "no_config: is not a model folder", "Give the folder"),
    ("a pickle", f"{DESCRIBE} {{pickled}}", "pytorch_model.bin, a pickle", "save_pretrained"),
    ("a quantized model", f"{DESCRIBE} {{quantized_already}}", "quantized already (awq)", "full-precision checkpoint"),
    ("a model quantized somehow", f"{DESCRIBE} {{quantized_somehow}}", "quantized already", "full-precision checkpoint"),
    ("a model without blocks", f"{DESCRIBE} {{without_blocks}}", "lacks the tensor model.layers.0", WEIGHTS),
    ("a config.json that is cut short", f"{DESCRIBE} {{broken_config}}", "config.json: is not JSON", AGAIN),
    ("a config.json that is a list", f"{DESCRIBE} {{listed_config}}", "config.json: holds no JSON object", AGAIN),
    ("a family that is unknown", f"{REFERENCE} --model {{of_no_family}} --text {{text}}", "no_such_family", "docs/"),
    ("a family that is a list", f"{REFERENCE} --model {{of_a_list}} --text {{text}}", "config.json", "docs/"),
    ("no family", f"{REFERENCE} --model {{without_a_family}} --text {{text}}", "no model_type", "docs/"),
    ("the config.json of another family", f"{REFERENCE} --model {{of_gpt2}} --text {{text}}", "of_gpt2: lacks the tensor", WEIGHTS),
    ("the config.json of a wider model", f"{REFERENCE} --model {{wider_config}} --text {{text}}", "has shape", WEIGHTS),
    ("the config.json of a deeper model", f"{REFERENCE} --model {{more_blocks}} --text {{text}}", "model.layers.2", WEIGHTS),
    ("a config.json with no blocks", f"{REFERENCE} --model {{no_blocks}} --text {{text}}", "decoder blocks", "docs/"),
    ("a width that is a word", f"{REFERENCE} --model {{worded_config}} --text {{text}}", "'hidden_size' expected int", "docs/"),
    ("a model with 0 heads", f"{REFERENCE} --model {{no_heads}} --text {{text}}", "config.json", "docs/"),
    ("no tokenizer", f"{REFERENCE} --model {{no_tokenizer}} --text {{text}}", "no_tokenizer: has no tokenizer", "Copy the files"),
    ("a broken tokenizer", f"{REFERENCE} --model {{broken_tokenizer}} --text {{text}}", "has no tokenizer", "Copy the files"),
    ("tokens beyond the embedding", f"{REFERENCE} --model {{few_tokens}} --text {{text}}", "has 50 rows", "tokenizer belongs"),
    ("no embedding", f"{REFERENCE} --model {{without_embedding}} --text {{text}}", "without_embedding: lacks", "config.json"),
    ("a layer with NaN: statistics", f"{STATS} --model {{nan_layer}}", "layers.0.self_attn.q_proj.weight holds NaN", SOUND),
    ("a layer with infinity: statistics", f"{STATS} --model {{infinite_layer}}", "q_proj.weight holds NaN or infinity", SOUND),
    ("a layer with NaN: perplexity", f"{PPL} --model {{nan_layer}}", "q_proj.weight holds NaN", SOUND),
    ("a layer with NaN: search", f"{ADAPTIVE} --model {{nan_layer}}", "q_proj.weight holds NaN", SOUND),
    ("a layer with NaN: checkpoint", f"{QUANTIZE} {{nan_layer}}", "q_proj.weight holds NaN", SOUND),
    ("a layer with NaN: GGUF", f"{EXPORT} {{nan_layer}}", "q_proj.weight holds NaN", SOUND),
    ("a layer with NaN: conversion", "convert_gguf.py --model {nan_layer} --output {tmp}/o", "q_proj.weight holds NaN", SOUND),
    ("a norm with NaN: perplexity", f"{PPL} --model {{nan_norm}}", "norm.weight holds NaN", SOUND),
    ("an embedding with NaN: perplexity", f"{PPL} --model {{nan_embedding}}", "embed_tokens.weight holds NaN", SOUND),
    ("an output with NaN: perplexity", f"{PPL} --model {{nan_output}}", "lm_head.weight holds NaN", SOUND),
    ("an output with NaN: checkpoint", f"{QUANTIZE} {{nan_output}}", "lm_head.weight holds NaN", SOUND),
    ("a file with NaN", f"{EXPORT} {{tiny}} --base {{gguf_with_nan}}", "output_norm.weight", SOUND),
    # -- model.json
    ("a model.json that is cut short", f"{BITS} {{plan}} --model {{files}}/broken.json", "broken.json: is not JSON", "Make it again"),
    ("a model.json that is a list", f"{BITS} {{plan}} --model {{files}}/list.json", "holds no JSON object", "Make it again"),
    ("another result for a model.json", f"{BITS} {{plan}} --model {{files}}/bits.json", "is not a model.json", "describe_model.py"),
    ("a model.json of another schema", f"{BITS} {{plan}} --model {{of_another_schema}}", "schema_version is 99", "describe_model.py"),
    ("a model.json whose model is gone", f"{PPL} --model {{moved_away}}", "gone: is not a model folder", "Give the folder"),
    ("a model.json whose model is another", f"{QUANTIZE} {{changed_since}}", "lacks", "describe_model.py"),
    # -- plans
    ("a plan that is cut short", f"{BITS} {{files}}/broken.json", "broken.json: is not JSON", "Make it again"),
    ("a plan that is a list", f"{BITS} {{files}}/list.json", "list.json: holds no JSON object", "Make it again"),
    ("a plan that is empty", f"{BITS} {{files}}/nothing", "nothing: is not JSON", "Make it again"),
    ("a plan that is no text", f"{BITS} {{files}}/binary.json", "binary.json: is not JSON", "Make it again"),
    ("a plan of 100000 lists", f"{BITS} {{files}}/nested.json", "nested.json: is not JSON", "Make it again"),
    ("another result for a plan", f"{BITS} {{files}}/bits.json", "avg_bits: unknown key", "Known: default, overrides"),
    ("a plan for another model", f"{BITS} {{plan_of_another}}", "is a plan for another model", "Search again"),
    ("a format that is unknown", f"{BITS} {{plan_of_no_format}}", "default.wq: unknown format 'mxfp44'", "Did you mean 'mxfp4'"),
    ("a format that is a list", f"{BITS} {{plan_of_a_listed_format}}", "default.wq: unknown format", "mxfp4"),
    ("a weight format for activations", f"{BITS} {{plan_of_weight_activations}}", "overrides[0].aq: q8_0", "Use mxfp*"),
    ("a pattern that matches nothing", f"{BITS} {{plan_of_no_layer}}", "'model.layers.7.*' matches no layer", "Did you mean"),
    ("a misspelt part", f"{BITS} {{plan_misspelt}}", "overides: unknown key", "Did you mean 'overrides'"),
    ("a misspelt key", f"{BITS} {{plan_key_misspelt}}", "overrides[0].wqq: unknown key", "Did you mean 'wq'"),
    ("overrides that are no list", f"{BITS} {{plan_of_one_object}}", "overrides: is no list", "Put it as"),
    ("an override without pattern", f"{BITS} {{plan_without_pattern}}", "overrides[0]", "Put it as"),
    ("a pattern that is a number", f"{BITS} {{plan_of_a_numbered_pattern}}", "overrides[0]", "Put it as"),
    ("a default that is a list", f"{BITS} {{plan_of_a_listed_default}}", "default", "Put it as"),
    ("a summary that is a word", f"{BITS} {{plan_of_a_worded_summary}}", "search_summary", "Put it as"),
    ("a target that is a word in a plan", f"{BITS} {{plan_of_a_worded_target}}", "target_avg_bits: 'eight'", "Give one"),
    ("a pattern for what is outside", f"{BITS} {{plan_of_all_outside}}", "overrides[0].embeddings: '*'", "Name one: model.embed_tokens, lm_head"),
    ("an unknown format outside", f"{PPL} --plan {{plan_of_no_format_outside}}", "overrides[0].wq: unknown format 'q6_kk'", "'q6_k'"),
    ("activations of an embedding", f"{EXPORT.replace('{plan}', '{plan_of_activations_outside}')} {{tiny}} --base {{gguf}}",
     "overrides[0].aq: what stands outside", "Leave it out"),
    ("outside without anchors", f"{SENSITIVITY} --embeddings q8_0", "--embeddings: is for KL", "Give --anchors"),
    ("an unknown format to measure outside", f"{SENSITIVITY} --anchors all --embeddings q6_kk", "'q6_kk'", "'q6_k'"),
    ("a skip that is a word", f"{BITS} {{plan_of_a_worded_skip}}", "overrides[0].skip: 'no'", "Give true"),
    *(
        (f"a group of {name}", f"{BITS} {{plan_group_{name}}}", f"default.group_size: {shown}", "Give one, as 32")
        for name, shown in {"zero": "0", "negative": "-1", "true": "True", "text": "'32'", "half": "1.5"}.items()
    ),
    ("a target missed", f"{BITS} {{plan}} --target-avg-bits 4 --on-miss fail", "over its target of 4", "Raise the target"),
    # -- tables and importance
    ("statistics of another model", f"{ADAPTIVE} --layer-stats {{table_of_another}}", "has no row for", "scripts/layer_stats.py"),
    ("statistics without alpha", f"{ADAPTIVE} --layer-stats {{table_without_alpha}}", "has no column alpha_hill", "Make it again"),
    ("statistics with words", f"{ADAPTIVE} --layer-stats {{table_of_words}}", "'high' where alpha_hill", "scripts/layer_stats.py"),
    ("statistics that are no text", f"{ADAPTIVE} --layer-stats {{files}}/binary.json", "is no table", "Make it again"),
    ("statistics of no bytes", f"{ADAPTIVE} --layer-stats {{files}}/nothing", "has no column layer", "Make it again"),
    ("importance of another model", f"{PPL} --imatrix {{importance_of_another}}", "q_proj", "scripts/layer_stats.py"),
    ("importance of another width", f"{EXPORT} {{tiny}} --base {{gguf}} --imatrix {{importance_too_short}}", "64 values",
     "scripts/layer_stats.py"),
    ("importance of another model: sensitivity", f"{SENSITIVITY} --imatrix {{importance_of_another}}", "q_proj", "layer_stats.py"),
    ("importance of another model: search", f"{ADAPTIVE} --imatrix {{importance_of_another}}", "q_proj", "layer_stats.py"),
    ("importance of another model: baseline", f"{BASELINE} {{gguf}} --model {{tiny}} --imatrix {{importance_of_another}}", "q_proj",
     "layer_stats.py"),
    ("importance without a model: baseline", f"{BASELINE} {{gguf}} --imatrix {{importance_of_another}}", "go together", "Give both"),
    ("importance for a file of another model", f"{BASELINE} {{gguf_of_another}} --model {{tiny}} --imatrix {{importance}}",
     "belongs to another model", "convert_gguf.py"),
    ("a text for importance", f"{TASKS} --imatrix {{text}}", "is no importance matrix", "scripts/layer_stats.py"),
    ("weights for importance", f"{QUANTIZE} {{tiny}} --imatrix {{tiny}}/model.safetensors", "q_proj", "scripts/layer_stats.py"),
    # -- GGUF files
    *(
        (f"a file to {what} that is {cut}", f"{line} {{gguf_{cut}}}", f"gguf_{cut}", "again")
        for cut in ("of_10_bytes", "cut_in_the_header", "cut_in_the_data")
        for what, line in {"export": f"{EXPORT} {{tiny}} --base", "score": f"{PPL} --gguf", "quantize": BASELINE}.items()
    ),
    ("a file to time that is cut short", f"{SPEED} a={{gguf_cut_in_the_data}}", "gguf_cut_in_the_data", "export it again"),
    ("an unknown runtime", f"{OF_RUNTIME} ggfu", "runtime 'ggfu'", "gguf"),
    ("a folder of packed tensors that is in use", f"{OF_RUNTIME} compressed_tensors --output {{full_folder}}", "exists already", "Choose another folder"),
    ("an artifact that is not there", f"{PPL} --artifact {{tmp}}/m --runtime compressed_tensors", "m: does not exist", "Give: file or folder"),
    ("a text to export from", f"{EXPORT} {{tiny}} --base {{text}}", "calibration.txt: is no GGUF file", "convert_gguf.py"),
    ("a text to score", f"{PPL} --gguf {{text}}", "calibration.txt: is no GGUF file", "export_gguf.py"),
    ("a text to quantize", f"{BASELINE} {{text}}", "calibration.txt: is no GGUF file", "convert_gguf.py"),
    ("a text to time", f"{SPEED} a={{text}}", "calibration.txt: is no GGUF file", "export_gguf.py"),
    ("a text to count bits of", f"{BITS} {{plan}} --gguf {{text}}", "calibration.txt: is no GGUF file", "export_gguf.py"),
    ("a file of another model to export from", f"{EXPORT} {{tiny}} --base {{gguf_of_another}}", "tensor ", "belongs to another model"),
    ("a file of another model to score", f"{PPL} --gguf {{gguf_of_another}}", "gguf_of_another", "again"),
    ("a file of no model to export from", f"{EXPORT} {{tiny}} --base {{gguf_of_no_model}}", "gguf_of_no_model", "convert_gguf.py"),
    ("a file of no model to quantize", f"{BASELINE} {{gguf_of_no_model}}", "gguf_of_no_model", "convert_gguf.py"),
    ("a file without a name", f"{SPEED} {{gguf}}", "is not NAME=FILE", "plan=results/model.gguf"),
    ("a name without a file", f"{SPEED} a=", "'a=' is not NAME=FILE", "plan=results/model.gguf"),
    ("a file to time that is not there", f"{SPEED} a={{tmp}}/no.gguf", "no.gguf: does not exist", "export_gguf.py"),
    ("two files of one name", f"{SPEED} a={{gguf}} a={{gguf_with_nan}}", "names two files 'a'", "a name of its own"),
    # -- tasks
    ("a task that is unknown", f"{TASKS} --tasks demo_storys", "'demo_storys'", "Did you mean 'demo_stories'"),
    ("a metric that is unknown", f"{ADAPTIVE} --task demo_memory --metric ppl --task-limit 1", "no metric 'ppl'", "It has: acc"),
    ("a task that is no YAML", f"{TASKS} --tasks mine --include-path {{tasks_of_no_yaml}}", "mine", "--include-path"),
    ("a task without data", f"{TASKS} --tasks mine --include-path {{tasks_without_data}}", "task mine", "cache"),
    ("a task of an unknown kind", f"{TASKS} --tasks mine --include-path {{tasks_of_unknown_kind}}", "task mine", "YAML"),
    ("a task of another field", f"{TASKS} --tasks mine --include-path {{tasks_of_another_field}}", "task mine", "YAML"),
    # -- results
    ("a missing result", f"{REPORT} {{results}}", "one/perplexity.json: does not exist", "snakemake"),
    ("an agreement that is none", f"{REPORT} {{results}} --agreement {{files}}/bits.json", "holds no taus", "sensitivity.py --report"),
    ("a result without speed", f"{REPORT} {{results_without_speed}}", "speed.json: lacks the speed of f16", "snakemake"),
    ("a plan that has no results", f"{REPORT} {{results}} --plan two", "plans/two", "snakemake"),
    # -- outputs
    ("an output that is a folder", f"{PPL} --output {{folder}}", "is a folder", "Choose another file"),
    ("an output below a file", f"{PPL} --output {{plan}}/out.json", "plan.json is a file", "Choose another file"),
    ("an output under /proc", f"{PPL} --output /proc/none/out.json", "/proc", "Choose another file"),
    ("a folder that holds something", f"{QUANTIZE} {{tiny}} --output {{full_folder}}", "exists already", "Choose another folder"),
    ("a folder that is a file", f"{QUANTIZE} {{tiny}} --output {{plan}}", "exists already", "Choose another folder"),
    ("a folder that is the model's", f"{QUANTIZE} {{tiny}} --output {{tiny}}", "exists already", "Choose another folder"),
    ("a folder below a file", "example_adaptive_search.py --output {plan}/out", "plan.json is a file", "Choose another folder"),
    ("a download into a file", "download_model.py --model a/b --output {plan}", "is a file", "Choose another folder"),
    ("an output that is the base", f"{EXPORT} {{tiny}} --base {{gguf}} --output {{gguf}}", "would destroy it", "Choose another"),
    ("a recipe over its base", "baseline_gguf.py --base {gguf} --output {gguf}", "would destroy it", "Choose another"),
    ("an output that is the text", f"{REFERENCE} --model {{tiny}} --text {{text}} --output {{text}}", "would destroy it", "Choose another"),
    ("an output that is the plan", f"{PPL} --plan {{plan}} --output {{plan}}", "would destroy it", "Choose another"),
    ("an output that is timed", f"{SPEED} a={{gguf}} --output {{gguf}}", "would destroy it", "Choose another"),
    ("an output that is config.json", f"{RANDOM} --output-config {{tiny}}/config.json", "part of the model", "Write outside"),
    ("an output that is weights", "teacher.py --model {tiny} --text {text} --output {tiny}/more.safetensors", "part of the model",
     "Write outside"),
    ("importance that would be weights", "layer_stats.py --model {tiny} --calibration {text} --output {tiny}/layer_stats.tsv", "part of the model",
     "Write outside"),
    ("two outputs of one name", f"{RANDOM} --output-plan {{tmp}}/c.json", "written twice", "a name of its own"),
    # -- W4 with A4 or A8
    ("an unknown format in a palette", f"{MEASURED} --palette q8_00 --target-avg-bits 8", "q8_00", "Did you mean 'q8_0'"),
    ("an unknown format to measure", f"{SENSITIVITY} --palette q8_00", "q8_00", "Did you mean 'q8_0'"),
    ("a palette without a target", f"{MEASURED} --palette q8_0", "--palette and --target-avg-bits", "Give both"),
    ("a target without a palette", f"{MEASURED} --target-avg-bits 8", "--palette and --target-avg-bits", "Give both"),
    ("a palette without an output", f"{MEASURED} --palette q8_0 --target-avg-bits 15", "--palette: has no place", "--output-plan"),
    ("a compression out of reach", f"{MEASURED} --target_compression 0.5", "--target_compression", "reach 0.6667 to 1.0000"),
    ("a compression that is a word", f"{MEASURED} --target_compression always", "--target_compression: 'always'", "nor auto"),
    ("a compression over 1", f"{MEASURED} --target_compression 1.5", "--target_compression: 1.5", "to 1"),
    ("average bits out of reach", f"{MEASURED} --palette q8_0 int4 --target-avg-bits 5 --output-plan {{tmp}}/p.json",
     "--target-avg-bits: no choice is within 5", "The choices reach 13."),
    ("a population of 2", f"{SEARCH} --ga_pop 2", "--ga_pop: 2", "from 3"),
    ("an alpha over 1", f"{SENSITIVITY} --smooth-alpha 1.5", "--smooth-alpha: 1.5", "from 0 to 1"),
    ("a layer with NaN: sensitivity", "sensitivity.py --model {nan_layer} --calibration {text} --length 16 --sequences 2 --output {tmp}/s.tsv",
     "q_proj.weight holds NaN", SOUND),
    ("a layer with NaN: measured", "sensitivity.py --model {nan_layer} --calibration {text} --length 16 --sequences 2 --output {tmp}/s.tsv --anchors all",
     "q_proj.weight holds NaN", SOUND),
    ("a share that is none", f"{SENSITIVITY} --shard 3/2", "--shard: '3/2'", "expected number/count"),
    ("more shares than layers", f"{SENSITIVITY} --shard 1/15", "15 shares of 14 layers", "Use 14 or fewer"),
    ("memory without a unit", f"{SENSITIVITY} --memory-limit 4", "--memory-limit: '4'", "4GB"),
    ("memory for no candidate", f"{SENSITIVITY} --anchors all --memory-limit 1KB", "--memory-limit: the hidden states", "Give 1MB or more"),
    ("anchors that are none", f"{SENSITIVITY} --anchors 3", "--anchors: invalid choice: '3'", "'all'"),
    ("anchors without a palette", f"{SENSITIVITY} --anchors 2", "--anchors: has no weight formats", "Give --palette"),
    ("anchors on Gaussian inputs", f"{SENSITIVITY} --anchors all --random", "--anchors, --metric gradient, --fisher and --shard", "Leave out --random"),
    ("statistics of another model: sensitivity", f"{SENSITIVITY} --layer-stats {{table_of_another}}", "has no row for model.layers.0",
     "layer_stats.py"),
    ("a shard that is not there", f"{MERGE} {{sensitivity}} {{tmp}}/none.tsv", "none.tsv: does not exist", "--shard"),
    ("a shard that is no table of sensitivity", f"{MERGE} {{sensitivity}}", "has no column", "Make it again"),
    ("a shard that would be overwritten", "merge_sensitivity.py --model {tiny} --tables {sensitivity} --output {sensitivity}",
     "is read by the same command", "Choose another file"),
    ("a text for sensitivity that is not there", f"{SEARCH} --calibration {{tmp}}/none.txt", "none.txt", "UTF-8 text"),
    ("a sensitivity table of another model", f"{SEARCH} --sensitivity {{sensitivity_of_another}}", "has no row for", "sensitivity.py"),
    ("a sensitivity table of words", f"{SEARCH} --sensitivity {{sensitivity_of_words}}", "mse 'high' is no number",
     "scripts/sensitivity.py"),
    ("a sensitivity table without mse", f"{SEARCH} --sensitivity {{table_of_words}}", "has no column", "Make it again"),
    ("a sensitivity table of another scope", f"{FOUND} --activation-scope token", "has no row for", "scripts/sensitivity.py"),
    ("a sensitivity table without a palette's format", f"{FOUND} --palette q5_0 --target-avg-bits 15 --output-plan {{tmp}}/p.json",
     "in q5_0 with bf16", "scripts/sensitivity.py"),
    ("a metric without figures", f"{FOUND} --metric kld", "kld: has no figures", "Choose another --metric"),
    ("factors of another table", f"{SEARCH} --sensitivity {{sensitivity_with_foreign_factors}}", "belongs to another table",
     "scripts/sensitivity.py"),
    ("an alpha beside a table", f"{SEARCH} --sensitivity {{sensitivity}} --smooth-alpha 0.9", "--smooth-alpha", "Leave out"),
    ("an error of weights alone for activations", f"{MEASURED} --metric weighted_error", "--metric", "Use mse"),
    ("factors that are broken", f"{SEARCH} --sensitivity {{sensitivity_with_broken_factors}}", "is no file of smoothing factors",
     "search again"),
    *(
        (f"{what} of torch: {each}", f"{line} {{{name}}}", name, "mixed_precision_ptq.py")
        for each, line in {"export": OFFICIAL, "simulation": SIMULATED}.items()
        for what, name in {"code": "pt_of_code", "a list": "pt_of_a_list", "part of a file": "pt_cut_short"}.items()
    ),
    ("a configuration of another model", f"{OFFICIAL} {{pt_of_another}}", "model.layers.9", "another model"),
    ("a configuration without its factors", f"{SIMULATED} {{pt_without_factors}}", "no file of smoothing factors", "search again"),
    ("a configuration that is not there", f"{OFFICIAL} {{tmp}}/m.pt", "m.pt: does not exist", "the search's configuration"),
    ("a Q4_K_M file that is not there", "compare_real_quant.py --skip_original --q4km_path {tmp}/q.gguf --mixed_path {gguf}",
     "q.gguf: does not exist", "Q4_K_M"),
    ("a mixed file that is not there", f"{THREE} {{tmp}}/mixed.gguf", "mixed.gguf: does not exist", "mixed-precision file"),
    ("no files at the document's places", "compare_real_quant.py", "models/qwen2.5-7b-mixed.gguf: does not exist",
     "export_gguf_official.py"),
    ("a text for a mixed file", f"{THREE} {{text}}", "calibration.txt: is no GGUF file", "export_gguf.py"),
    # -- the allocation of bits
    ("a damage that is NaN", f"{ALLOCATE} {{damages_of_nan}}", "lines 6, 7: kld is 'nan'", "leave out the row"),
    ("a row of damages there twice", f"{ALLOCATE} {{damages_twice}}", "line 6: blk.0.up has a row for q4_K already", "Give one row"),
    ("params that differ", f"{ALLOCATE} {{damages_of_other_params}}", "params of blk.0.up is 90, 100", "the same number"),
    ("a sensitivity table without damages", f"{ALLOCATE} {{sensitivity}}", "has no column params", "It needs layer, params"),
    ("a text for a table", f"{ALLOCATE} {{text}}", "calibration.txt: has no column", "It needs layer, params"),
    ("a table of damages that is not there", f"{ALLOCATE} {{tmp}}/s.csv", "s.csv: does not exist", "layer, params, format"),
    ("no target", "allocate_bits.py --sensitivity {damages} --output {tmp}/front.json", "targets: there is none", "--max-kld"),
    ("bits out of reach", f"{ALLOCATE} {{damages}} --target-avg-bits 2", "no plan is within it", "reaches 4 to 8"),
    ("a damage out of reach", f"{ALLOCATE} {{damages}} --max-kld 0.1", "--max-kld 0.1: no plan", "reaches 0.201"),
    ("bits that are a word", f"{ALLOCATE} {{damages}} --target-avg-bits many", "'many'", "--help lists the flags"),
    ("a protected layer that is not there", f"{ALLOCATE} {{damages}} --protect blk.9.up", "blk.9.up: matches no layer", "Did you mean"),
    ("a floor of no format", f"{ALLOCATE} {{damages}} --floor *=q7_K", "no format 'q7_K'", "Did you mean"),
    ("a floor over a protected group", f"{ALLOCATE} {{damages}} --groups blk.**.up --protect blk.0.up=q4_K --floor *=q8_0",
     "group of blk.0.up, blk.1.up: no format is left", "Lower its floor"),
    ("groups that are not there", f"{ALLOCATE} {{damages}} --groups {{tmp}}/g.tsv", "neither a file nor patterns", "Give a table"),
    ("groups of another table", f"{ALLOCATE} {{damages}} --groups {{damages}}", "has no column group", "Its columns are"),
    ("a table of damages to write over", "allocate_bits.py --target-avg-bits 6 --sensitivity {damages} --output {damages}",
     "is read by the same command", "Choose another file"),
    ("groups to write over", "allocate_bits.py --target-avg-bits 6 --sensitivity {damages} --groups {plan} --output {plan}",
     "is read by the same command", "Choose another file"),
    # -- the model hub
    ("an unknown id, offline", f"{DESCRIBE} no-such/model", "no-such/model", "unset HF_HUB_OFFLINE"),
    ("an unknown id to fetch, offline", "download_model.py --model no-such/model --output {tmp}/m", "no-such/model", "Unset it"),
    ("an id that is none", "download_model.py --model ../model --output {tmp}/m", "../model", "organization/name"),
    ("a revision of a folder", f"{DESCRIBE} {{tiny}} --revision main", "--revision", "Leave --revision out"),
    ("a revision that is a path", f"{DESCRIBE} no-such/model --revision ../x", "../x", "Give a branch"),
]  # fmt: skip


LINES = {case[0]: case[1] for case in CASES}
# Cases that fail when much is done already: every kind of output is among them.
LATE = (
    "a layer with NaN: checkpoint",
    "a document that is not UTF-8",
    "a file of another model to score",
    "a file to quantize that is cut_in_the_data",
    "a file to time that is cut short",
    "a file with NaN",
    "a layer with NaN: GGUF",
    "a layer with NaN: measured",
    "a layer with NaN: conversion",
    "a layer with NaN: perplexity",
    "a layer with NaN: search",
    "a layer with NaN: statistics",
    "a missing result",
    "a result without speed",
    "a target missed",
    "a task of another field",
    "tokens beyond the embedding",
)
WRITTEN = (
    "--output",
    "--output-config",
    "--output-plan",
    "--json",
    "--report",
    "--text",
    "--page",
    "--figure",
    "--save-plan",
)


@pytest.mark.parametrize(("line", "names", "way_out"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_names_the_culprit_and_a_way_out_and_leaves_nothing(line, names, way_out, invoke, shelf, tmp_path):
    name, *words = (filled(word, shelf, tmp_path) for word in shlex.split(line))
    folders = (shelf.folder, shelf["tiny"])
    before = [stamps(folder) for folder in folders]
    check(invoke(name, *words), names, way_out)
    assert [stamps(folder) for folder in folders] == before and contents(tmp_path) == {}


@pytest.mark.parametrize("case", LATE)
def test_outputs_that_were_there_before_stay_as_they_were(case, invoke, shelf, tmp_path):
    name, *words = (filled(word, shelf, tmp_path) for word in shlex.split(LINES[case]))
    for flag, path in pairwise(words):
        if flag in WRITTEN and path.startswith(str(tmp_path)) and name != "quantize_model.py":
            Path(path).write_text("from before")
    before = contents(tmp_path)
    assert invoke(name, *words).code == 2
    assert contents(tmp_path) == before


# -------------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_a_flag_that_it_does_not_know(name, invoke):
    way_out = "usage: set_up.py" if name == "set_up.py" else "--help lists the flags"
    check(invoke(name, "--no-such-flag", "1"), "--no-such-flag", way_out)


REQUIRED = [
    ("adaptive_quantization_search.py", "--model, --output-config, --output-plan"),
    ("allocate_bits.py", "--sensitivity, --output"),
    ("baseline_gguf.py", "--base, --output"),
    ("calculate_avg_bits.py", "--config, --model"),
    ("check_runtime.py", "--model, --plan, --runtime"),
    ("compare_formats.py", "--model"),
    ("convert_gguf.py", "--model, --output"),
    ("describe_model.py", "--model, --output"),
    ("download_model.py", "--model, --output"),
    ("eval_with_lm_eval.py", "--model"),
    ("export_gguf.py", "--model, --plan, --output, --report"),
    ("export_plan.py", "--model, --runtime, --plan, --output, --report"),
    ("layer_stats.py", "--model, --output"),
    ("merge_sensitivity.py", "--model, --tables, --output"),
    ("perplexity.py", "--model, --output"),
    ("quantize_model.py", "--model, --layer-config"),
    ("random_mixed_precision_quantization.py", "--model, --output-config"),
    ("report.py", "--model, --results, --output, --text, --page, --figure"),
    ("study_report.py", "--results, --study, --cell, --x, --output, --text, --figure"),
    ("teacher.py", "--model, --text, --output"),
]


@pytest.mark.parametrize(("name", "flags"), REQUIRED)
def test_missing_flags_are_named_together(name, flags, invoke):
    check(invoke(name), f"the following arguments are required: {flags}", "--help lists the flags")


@pytest.mark.parametrize("name", [name for name, _ in REQUIRED])
def test_a_flag_without_its_value_is_named(name, invoke):
    flag = dict(REQUIRED)[name].split(", ")[0]
    check(invoke(name, flag), f"argument {flag}: expected", "--help lists the flags")


# ------------------------------------------------------------------------------------------- devices that refuse to be written


@pytest.fixture
def device(tmp_path_factory):
    """A function that mounts a small file system of its own, with a mode of mount's, and returns its folder."""
    folder = tmp_path_factory.mktemp("device")

    def mounted(*options: str) -> Path:
        line = ["mount", "-t", "tmpfs", "-o", ",".join(("size=64k", *options)), "tmpfs", str(folder)]
        try:
            made = subprocess.run(line, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount on this machine")
        if made.returncode:
            pytest.skip("this process may not mount")
        return folder

    yield mounted
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def fill(folder: Path) -> None:
    """Leave no space in a file system."""
    with open(folder / "filler", "wb", buffering=0) as handle:
        try:
            while True:
                handle.write(b"x" * 1024)
        except OSError:
            return


FREE = "Free some"
WRITERS = [
    ("a description", f"{DESCRIBE} {{tiny}}", FREE),
    ("a saved text", f"{REFERENCE} --model {{tiny}} --text {{text}}", FREE),
    ("statistics", f"{STATS} --model {{tiny}}", FREE),
    ("bits", f"{BITS} {{plan}}", FREE),
    ("a sensitivity table", SENSITIVITY, FREE),
    ("a measured sensitivity", f"{SENSITIVITY} --anchors all", FREE),
    ("a perplexity", PPL, FREE),
    ("a random plan", RANDOM, FREE),
    ("an allocation", f"{ALLOCATE} {{damages}}", FREE),
    ("a compressed model", f"{SPARSEGPT} {{tiny}} {{text}}", FREE),
    ("a table of formats", "describe_formats.py --formats q8_0 --values 4096 --output {tmp}/out.md", FREE),
    ("a checkpoint", f"{QUANTIZE} {{tiny}}", FREE),
    ("an export", f"{EXPORT} {{tiny}} --base {{gguf}}", FREE),
    ("a recipe", f"{BASELINE} {{gguf}} --recipe f16", "Is there room for the output?"),
    ("a conversion", "convert_gguf.py --model {tiny} --output {tmp}/out.gguf", FREE),
]


@pytest.mark.parametrize(("what", "line", "way_out"), WRITERS, ids=[each[0] for each in WRITERS])
def test_a_full_device_is_named_and_nothing_is_left_on_it(what, line, way_out, invoke, shelf, device):
    folder = device()
    fill(folder)
    before = contents(folder)
    name, *words = (filled(word, shelf, folder) for word in shlex.split(line))
    check(invoke(name, *words), str(folder), way_out)
    assert contents(folder) == before


@pytest.mark.parametrize(("what", "line", "_"), WRITERS, ids=[each[0] for each in WRITERS])
def test_a_read_only_device_is_named_before_anything_slow(what, line, _, invoke, shelf, device):
    folder = device("ro")
    name, *words = (filled(word, shelf, folder) for word in shlex.split(line))
    check(invoke(name, *words), f"{folder}: Read-only file system", "Choose another")


# What was refused, with advice that went in a circle, before layers got the formats that fit them: each line, and how many layers.
FITTED = [
    ("perplexity", f"{PPL} --plan {{plan_of_q4_k}}", "14 of 14 layers"),
    ("an embedding", f"{PPL} --plan {{plan_of_q4_k_outside}}", "1 of 15 layers"),
    (
        "a checkpoint",
        "quantize_model.py --model {tiny} --layer-config {plan_of_q4_k} --output {tmp}/o --save-plan {tmp}/p.json",
        "14 of 14 layers",
    ),
    (
        "formats",
        "compare_formats.py --model {tiny} --text {text} --length 16 --sequences 2 --formats q8_0 q4_k --output {tmp}/o",
        "14 of 14 layers",
    ),
    ("a search", f"{ADAPTIVE} --formats q4_k q8_0", "14 of 14 layers"),
    ("sensitivity", f"{SENSITIVITY} --palette q4_k", "14 of 14 layers"),
    ("measured sensitivity", f"{SENSITIVITY} --palette q4_k --anchors 1", "14 of 14 layers"),
    ("sensitivity outside", f"{SENSITIVITY} --anchors all --embeddings q4_k", "2 of 16 layers"),
    ("bits", f"{BITS} {{plan_of_q4_k}}", "14 of 14 layers"),
    ("an export", f"{EXPORT.replace('{plan}', '{plan_of_q4_k}')} {{tiny}} --base {{gguf}}", "14 of 14 layers"),
]


@pytest.mark.parametrize(("line", "layers"), [case[1:] for case in FITTED], ids=[case[0] for case in FITTED])
def test_rows_that_fit_no_k_type_get_its_substitute_with_one_warning(line, layers, invoke, shelf, tmp_path):
    name, *words = (filled(word, shelf, tmp_path) for word in shlex.split(line))
    made = invoke(name, *words)
    assert made.code == 0 and "Traceback" not in made.text, made
    warnings = [each for each in made.log if "do not fit" in each]
    assert len(warnings) == 1 and layers in warnings[0] and "columns: q4_k -> q5_0" in warnings[0], made


def test_a_perplexity_beyond_all_numbers_is_an_error(invoke, shelf, tmp_path):
    line = "perplexity.py --model {loud_output} --text {text} --length 16 --sequences 2 --output {tmp}/out.json"
    name, *words = (filled(word, shelf, tmp_path) for word in shlex.split(line))
    check(invoke(name, *words), "scores: are not finite (PPL inf, full precision PPL inf)", "the mean NLL is over 709")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- configuration

MODEL = {"path": "m", "calibration": "c.txt", "evaluation": "e.txt"}
ADAPTIVE_PLAN, RANDOM_PLAN = {"method": "adaptive"}, {"method": "random"}


def plan(**changes: object) -> dict:
    return {"plans": {"one": {**ADAPTIVE_PLAN, **changes}}}


def drawn(**changes: object) -> dict:
    return {"plans": {"one": {**RANDOM_PLAN, **changes}}}


SETTINGS = [
    ("an unknown section", {"modells": {}}, "modells: unknown key", 'Did you mean "models"?'),
    ("a section like no other", {"xyz": 1}, "xyz: unknown key", "Known: models, plans"),
    ("an unknown key of a model", {"models": {"m": {**MODEL, "pth": "x"}}}, "models.m.pth: unknown key", '"path"'),
    ("an unknown key of an adaptive plan", plan(step=1), "plans.one.step: unknown key", '"step_size"'),
    ("an unknown key of a random plan", drawn(mxfp8_ratio=1), "plans.one.mxfp8_ratio: unknown key", "_ratio"),
    ("an unknown key of a check", plan(check={"on": "fail"}), "plans.one.check.on: unknown key", "on_miss"),
    ("an unknown key of compute", {"compute": {"devise": "cpu"}}, "compute.devise: unknown key", '"device"'),
    ("an unknown key of calibration", {"calibration": {"len": 2}}, "calibration.len: unknown key", "length"),
    ("an unknown key of evaluation", {"evaluation": {"len": 2}}, "evaluation.len: unknown key", "length"),
    ("an unknown key of export", {"export": {"type": "f16"}}, "export.type: unknown key", "unquantized"),
    ("an unknown key of speed", {"speed": {"repeat": 2}}, "speed.repeat: unknown key", '"repeats"'),
    ("an unknown key of tasks", {"tasks": {"name": []}}, "tasks.name: unknown key", '"names"'),
    ("a model without texts", {"models": {"m": {"path": "x"}}}, "models.m.calibration: field required", "Add it"),
    ("no models", {"models": {}}, "models: ", "at least 1"),
    ("a model that is a word", {"models": {"m": "demo"}}, "models.m", "valid dictionary"),
    ("plans that are a list", {"plans": ["adaptive"]}, "plans", "valid dictionary"),
    ("a plan that is a word", {"plans": {"one": "adaptive"}}, "plans.one", "valid dictionary"),
    ("a plan without method", {"plans": {"one": {}}}, "plans.one: has no method", "adaptive, random"),
    ("a method that is unknown", {"plans": {"one": {"method": "genetics"}}}, "'genetics'", "'adaptive', 'random'"),
    (
        "a ratio over 1 in a plan",
        drawn(mxfp4_ratio=1.5),
        "plans.one.mxfp4_ratio",
        "less than or equal to 1 (it is 1.5)",
    ),
    ("ratios over 1 together in a plan", drawn(mxfp4_ratio=0.7, bf16_ratio=0.6), "plans.one.bf16_ratio", "more than 1"),
    ("a negative step in a plan", plan(step_size=-1), "plans.one.step_size", "greater than 0 (it is -1)"),
    ("a step of NaN in a plan", plan(step_size=float("nan")), "plans.one.step_size", "finite number"),
    ("an infinite step in a plan", plan(step_size=float("inf")), "plans.one.step_size", "finite number"),
    ("a threshold of 0 in a plan", plan(ppl_threshold=0), "plans.one.ppl_threshold", "greater than 0"),
    ("a target over 16", plan(target_avg_bits=17), "plans.one.target_avg_bits", "less than or equal to 16"),
    (
        "a target that is a word in the settings",
        plan(target_avg_bits="eight"),
        "plans.one.target_avg_bits",
        "valid number",
    ),
    ("an unknown format in a plan", plan(formats=["mxfp44"]), "plans.one.formats.0", "'mxfp4'"),
    ("formats that are a word", plan(formats="mxfp4"), "plans.one.formats", "valid list"),
    ("anchors of three", {"sensitivity": {"anchors": 3}}, "sensitivity.anchors", "should be 1, 2 or 'all'"),
    ("anchors that are yes", {"sensitivity": {"anchors": True}}, "sensitivity.anchors", "give 1, 2, all or null"),
    ("anchors of no palette", {"sensitivity": {"anchors": "2"}}, "sensitivity: anchors 1 and 2", "give it some"),
    ("memory that is none", {"sensitivity": {"memory_limit": "much"}}, "sensitivity.memory_limit: 'much'", "4GB"),
    ("no shards", {"sensitivity": {"shards": 0}}, "sensitivity.shards", "greater than or equal to 1"),
    (
        "a measurement on Gaussian inputs",
        {"sensitivity": {"random": True, "fisher": True}},
        "sensitivity: random",
        "calibration text",
    ),
    ("no formats", plan(formats=[]), "plans.one.formats", "at least 1"),
    ("a group that is half", plan(group_size=1.5), "plans.one.group_size", "valid integer"),
    ("an unknown recipe in the settings", {"baselines": ["q4_kk"]}, "baselines.0", "'q4_k_m'"),
    (
        "outside without anchors in the settings",
        {"sensitivity": {"embeddings": ["q6_k"]}},
        "sensitivity: embeddings goes with anchors",
        "",
    ),
    (
        "an unknown format outside in the settings",
        {"sensitivity": {"embeddings": ["q6_kk"]}},
        "sensitivity.embeddings.0",
        "'q6_k'",
    ),
    ("an importance matrix that is a file", {"imatrix": "layer_stats.safetensors"}, "imatrix: ", "valid boolean"),
    ("a recipe that cannot use importance", {"baselines": ["f16_imatrix"]}, "baselines.0", "'q4_k_m_imatrix'"),
    ("an unknown dtype in the settings", {"compute": {"dtype": "fp8"}}, "compute.dtype", "'fp32'"),
    ("an unknown device in the settings", {"compute": {"device": "gpu"}}, "compute.device", "cuda"),
    ("a window of 1 token", {"evaluation": {"length": 1}}, "evaluation.length", "greater than or equal to 2"),
    ("repeats that are a word", {"speed": {"repeats": "many"}}, "speed.repeats", "(it is 'many')"),
    (
        "a tolerance below 0 in a check",
        plan(check={"tolerance": -1}),
        "plans.one.check.tolerance",
        "greater than or equal",
    ),
    ("a name with a space", {"plans": {"a b": RANDOM_PLAN}}, "plans.a b", "match pattern"),
    ("a name that leads elsewhere", {"plans": {"../x": RANDOM_PLAN}}, "plans.../x", "match pattern"),
    ("a plan with the name of a baseline", {"plans": {"f16": RANDOM_PLAN}}, "f16 is used twice", "names of their own"),
]


@pytest.mark.parametrize(("changes", "names", "way_out"), [case[1:] for case in SETTINGS], ids=[c[0] for c in SETTINGS])
def test_a_wrong_setting_is_one_line_with_its_key_and_a_way_out(changes, names, way_out):
    with pytest.raises(UserError) as caught:
        parse_settings({"models": {"demo": MODEL}, "plans": {"one": ADAPTIVE_PLAN}, **changes})
    lines = [str(problem) for problem in caught.value.problems]
    assert any(names in line and way_out in line and "\n" not in line for line in lines), lines


CONFIGS = [
    ("no YAML", "models: [", "not valid JSON or YAML", "indentation"),
    ("a key given twice", "speed:\n  repeats: 1\n  repeats: 2\n", "key 'repeats' is given twice", "First in line 2"),
    ("an unknown key", "plans: {one: {method: adaptive, step: 1}}", "plans.one.step: unknown key", '"step_size"'),
    (
        "a ratio over 1",
        "plans: {one: {method: random, mxfp4_ratio: 2}}",
        "plans.one.mxfp4_ratio",
        "less than or equal to 1",
    ),
    ("a list", "[models]", "Config file must be", "keys at top level"),
]


@pytest.mark.parametrize(
    ("text", "names", "way_out"), [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS]
)
def test_snakemake_stops_at_a_wrong_configuration_without_a_traceback(text, names, way_out, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    line = ["snakemake", "--dry-run", "--configfile", str(tmp_path / "config.yaml"), "--directory", str(tmp_path)]
    made = subprocess.run(
        [*line, "--snakefile", str(ROOT / "Snakefile")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = made.stdout + made.stderr
    assert made.returncode in (1, 2) and "Traceback" not in said, said
    assert names in said and way_out in said, said
