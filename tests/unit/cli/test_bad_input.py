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


HINT = re.compile(r"(\. |\? )[A-Za-z`-]")  # a sentence after the one that says what is wrong


def check_problem(made: Told, code: str, place: str) -> None:
    """A command that ended with a problem: its code, its place, and in each line what to do."""
    check(made, place, f"error [{code}] ")
    assert all(HINT.search(line) for line in made.lines if line.startswith("error [")), made


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
OPTIMAL = "optimal_search.py --model {tiny} --calibration {text} --target-avg-bits 12 --output-plan {tmp}/p.json"
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

CASES = [
    # -- numbers and words given to flags
    ("a misspelt flag", "describe_model.py --modle {tiny} --output {tmp}/o", "--modle", "FLAGS-UNKNOWN"),
    ("a flag of old", f"{RANDOM} --ratio 0.5", "--ratio", "FLAGS-UNKNOWN"),
    ("a ratio over 1", f"{RANDOM} --mxfp4-ratio 1.2", "--mxfp4-ratio", "FLAGS-INVALID"),
    ("a negative ratio", f"{RANDOM} --bf16-ratio -0.1", "--bf16-ratio", "FLAGS-INVALID"),
    ("ratios over 1 together", f"{RANDOM} --mxfp4-ratio 0.9 --bf16-ratio 0.2", "1.1", "RANDOM-RATIOS"),
    ("a ratio that is a word", f"{RANDOM} --mxfp4-ratio half", "'half'", "FLAGS-INVALID"),
    ("a negative seed", f"{RANDOM} --seed -1", "--seed", "FLAGS-INVALID"),
    ("a seed of 400 digits", f"{RANDOM} --seed {'9' * 400}", "--seed", "FLAGS-INVALID"),
    ("a group of 0", f"{RANDOM} --group-size 0", "--group-size", "FLAGS-INVALID"),
    ("a negative step", f"{ADAPTIVE} --step-size -0.5", "--step-size", "FLAGS-INVALID"),
    ("a step of 0", f"{ADAPTIVE} --step-size 0", "--step-size", "FLAGS-INVALID"),
    ("a step of NaN", f"{ADAPTIVE} --step-size nan", "--step-size", "FLAGS-INVALID"),
    ("an infinite step", f"{ADAPTIVE} --step-size inf", "--step-size", "FLAGS-INVALID"),
    ("a threshold of 0", f"{ADAPTIVE} --ppl-threshold 0", "--ppl-threshold", "FLAGS-INVALID"),
    ("a threshold of NaN", f"{ADAPTIVE} --ppl-threshold nan", "--ppl-threshold", "FLAGS-INVALID"),
    ("a target that is a word", f"{ADAPTIVE} --target-avg-bits eight", "'eight'", "FLAGS-INVALID"),
    ("an unknown search", f"{ADAPTIVE} --search random", "'random'", "FLAGS-INVALID"),
    ("an unknown format to search", f"{ADAPTIVE} --formats mxfp4 mxfp88", "mxfp88", "FORMAT-UNKNOWN"),
    ("windows of 1 token", f"{PPL} --length 1", "--length", "FLAGS-INVALID"),
    ("no windows", f"{PPL} --sequences 0", "--sequences", "FLAGS-INVALID"),
    ("half a window", f"{PPL} --sequences 0.5", "'0.5'", "FLAGS-INVALID"),
    ("an unknown dtype", f"{PPL} --dtype fp8", "'fp8'", "FLAGS-INVALID"),
    ("an unknown device", f"{PPL} --device abc", "'abc'", "DEVICE-UNKNOWN"),
    ("a device that is absent", f"{PPL} --device cuda:99", "cuda:99", "DEVICE-ABSENT"),
    ("a plan and a file at once", f"{PPL} --plan {{plan}} --gguf {{gguf}}", "--gguf", "FLAGS-INVALID"),
    ("threads below 1", "quantize_model.py --model {tiny} --layer-config {plan} --threads -1", "--threads", "FLAGS-INVALID"),
    ("an unknown format to compare", "compare_formats.py --model {tiny} --text {text} --formats q4_kk", "q4_kk", "FORMAT-UNKNOWN"),
    ("an unknown format to describe", "describe_formats.py --formats mxfp5", "mxfp5", "FORMAT-UNKNOWN"),
    ("no values to draw", "describe_formats.py --values 0", "--values", "FLAGS-INVALID"),
    ("an unknown type to convert to", "convert_gguf.py --model {tiny} --type q8 --output {tmp}/o", "'q8'", "FLAGS-INVALID"),
    ("an unknown recipe", f"{BASELINE} {{gguf}} --recipe q4_x", "q4_x", "GGUF-UNKNOWN-RECIPE"),
    ("a tolerance below 0", f"{BITS} {{plan}} --tolerance -1", "--tolerance", "FLAGS-INVALID"),
    ("one token to generate", f"{SPEED} a={{gguf}} --max_tokens 1", "--max-tokens", "FLAGS-INVALID"),
    ("no documents", f"{TASKS} --limit 0", "--limit", "FLAGS-INVALID"),
    # -- files that are not there, or of another kind
    ("a model that is not there", f"{DESCRIBE} {{tmp}}/none", "none", "MODEL-NO-CONFIG"),
    ("a model that is a text", f"{DESCRIBE} {{text}}", "calibration.txt", "MODEL-NO-CONFIG"),
    ("a folder that is no model", f"{DESCRIBE} {{full_folder}}", "no config.json", "MODEL-NO-CONFIG"),
    ("a name of 300 letters", f"{DESCRIBE} {'a' * 300}", "aaaa", "MODEL-NO-CONFIG"),
    ("a plan that is not there", f"{PPL} --plan {{tmp}}/p.json", "p.json", "INPUT-MISSING"),
    ("a plan that is a folder", f"{PPL} --plan {{folder}}", "folder", "INPUT-IS-FOLDER"),
    ("a text that is not there", f"{REFERENCE} --model {{tiny}} --text {{tmp}}/a.txt", "a.txt", "INPUT-MISSING"),
    ("a text that is a folder", f"{REFERENCE} --model {{tiny}} --text {{folder}}", "folder", "INPUT-IS-FOLDER"),
    ("a file to score that is not there", f"{PPL} --gguf {{tmp}}/m.gguf", "m.gguf", "INPUT-MISSING"),
    ("importance that is not there", f"{PPL} --imatrix {{tmp}}/i", "--imatrix", "INPUT-MISSING"),
    ("statistics that are not there", f"{ADAPTIVE} --layer-stats {{tmp}}/s", "--layer-stats", "INPUT-MISSING"),
    ("a base that is not there", f"{BASELINE} {{tmp}}/b.gguf", "b.gguf", "INPUT-MISSING"),
    ("a base that is a folder", f"{BASELINE} {{folder}}", "folder", "INPUT-IS-FOLDER"),
    ("a folder of tasks that is not there", f"{TASKS} --include-path {{tmp}}/t", "--include-path", "INPUT-MISSING"),
    ("a folder of tasks that is a file", f"{TASKS} --include-path {{plan}}", "plan.json", "INPUT-NOT-FOLDER"),
    ("results that are not there", f"{REPORT} {{tmp}}/results", "--results", "INPUT-MISSING"),
    ("three files that are not there", f"{PPL} --plan {{tmp}}/p --imatrix {{tmp}}/i", "--imatrix", "INPUT-MISSING"),
    ("a calibration text that is not there", "example_adaptive_search.py --calibration {tmp}/c", "--calibration", "INPUT-MISSING"),
    # -- texts
    ("an empty text", f"{REFERENCE} --model {{tiny}} --text {{files}}/empty.txt", "empty.txt", "TEXT-EMPTY"),
    ("a file of no bytes", f"{REFERENCE} --model {{tiny}} --text {{files}}/nothing", "nothing", "TEXT-EMPTY"),
    ("a text shorter than a window", f"{REFERENCE} --model {{tiny}} --text {{files}}/short.txt", "short.txt", "TEXT-TOO-SHORT"),
    ("a text that is not UTF-8", f"{REFERENCE} --model {{tiny}} --text {{files}}/latin1.txt", "(byte 5)", "TEXT-NOT-UTF8"),
    ("more windows than the text has", f"{PPL} --sequences 99999999", "99999999 windows", "TEXT-TOO-SHORT"),
    ("windows beyond learned positions", f"{REFERENCE} --model {{learned_positions}} --text {{text}} --length 512",
     "512 tokens", "TEXT-WINDOW-TOO-LONG"),
    ("a document that is not UTF-8", "describe_formats.py --output {files}/latin1.txt", "latin1.txt", "TEXT-NOT-UTF8"),
    ("a document without a place", "describe_formats.py --output {files}/short.txt", "short.txt", "FORMAT-NO-PLACE"),
    # -- saved texts
    ("a saved text of another model", "perplexity.py --model {learned_positions} --text {reference_text} --output {tmp}/o",
     "reference_text.safetensors", "REFERENCE-OTHER-MODEL"),
    ("a saved text of another dtype", "perplexity.py --model {tiny} --text {reference_text} --output {tmp}/o", "bf16", "REFERENCE-OTHER-DTYPE"),
    ("weights for a saved text", "perplexity.py --model {tiny} --text {tiny}/model.safetensors --output {tmp}/o",
     "model.safetensors", "REFERENCE-INVALID"),
    ("a saved text without facts", "perplexity.py --model {tiny} --text {text_without_facts} --output {tmp}/o",
     "text_without_facts.safetensors", "REFERENCE-INVALID"),
    ("words called a saved text", "perplexity.py --model {tiny} --text {text_of_words} --output {tmp}/o",
     "text_of_words.safetensors", "REFERENCE-INVALID"),
    # -- models: headers
    ("a header cut short", f"{DESCRIBE} {{header_cut}}", "model.safetensors", "MODEL-TRUNCATED"),
    ("a header of an absurd length", f"{DESCRIBE} {{header_of_an_absurd_length}}", "model.safetensors", "MODEL-TRUNCATED"),
    ("a header that is no JSON", f"{DESCRIBE} {{header_of_no_json}}", "model.safetensors", "MODEL-BAD-HEADER"),
    ("a header that is no text", f"{DESCRIBE} {{header_of_no_text}}", "model.safetensors", "MODEL-BAD-HEADER"),
    ("a header that is a list", f"{DESCRIBE} {{header_of_a_list}}", "model.safetensors", "MODEL-BAD-HEADER"),
    ("a header without offsets", f"{DESCRIBE} {{header_without_offsets}}", "model.safetensors", "MODEL-BAD-HEADER"),
    ("tensors that overlap", f"{DESCRIBE} {{header_with_overlap}}", "model.safetensors", "MODEL-BAD-HEADER"),
    ("tensors with a gap", f"{DESCRIBE} {{header_with_a_gap}}", "model.safetensors", "MODEL-BAD-HEADER"),
    ("negative offsets", f"{DESCRIBE} {{header_with_negative_offsets}}", "model.safetensors", "MODEL-BAD-HEADER"),
    ("a shape of half values", f"{DESCRIBE} {{header_with_half_values}}", "model.safetensors", "MODEL-BAD-HEADER"),
    ("a shape that needs fewer bytes", f"{DESCRIBE} {{header_with_a_wrong_shape}}", "model.safetensors", "MODEL-BAD-HEADER"),
    ("weights cut short", f"{DESCRIBE} {{truncated}}", "model.safetensors", "MODEL-TRUNCATED"),
    ("weights of no bytes", f"{DESCRIBE} {{without_a_byte}}", "model.safetensors", "MODEL-TRUNCATED"),
    ("a folder called weights", f"{DESCRIBE} {{folder_for_weights}}", "model.safetensors", "MODEL-NO-SHARD"),
    ("a missing shard", f"{DESCRIBE} {{lost_shard}}", "model-00002-of-00002.safetensors", "MODEL-NO-SHARD"),
    ("a shard outside the folder", f"{DESCRIBE} {{shard_outside}}", "'../tiny/model.safetensors'", "MODEL-BAD-INDEX"),
    ("an index without a map", f"{DESCRIBE} {{index_without_map}}", "index.json", "MODEL-BAD-INDEX"),
    ("an index of numbers", f"{DESCRIBE} {{index_of_numbers}}", "index.json", "MODEL-BAD-INDEX"),
    # -- models: what is in them
    ("a model without weights", f"{DESCRIBE} {{no_weights}}", "no_weights", "MODEL-NO-SAFETENSORS"),
    ("a model without config.json", f"{DESCRIBE} {{no_config}}", "no_config", "MODEL-NO-CONFIG"),
    ("a pickle", f"{DESCRIBE} {{pickled}}", "pytorch_model.bin", "MODEL-NO-SAFETENSORS"),
    ("a quantized model", f"{DESCRIBE} {{quantized_already}}", "quantized_already", "MODEL-QUANTIZED"),
    ("a model quantized somehow", f"{DESCRIBE} {{quantized_somehow}}", "quantized_somehow", "MODEL-QUANTIZED"),
    ("a model without blocks", f"{DESCRIBE} {{without_blocks}}", "model.layers.0", "MODEL-NO-TENSOR"),
    ("a config.json that is cut short", f"{DESCRIBE} {{broken_config}}", "config.json", "FILE-NOT-JSON"),
    ("a config.json that is a list", f"{DESCRIBE} {{listed_config}}", "config.json", "FILE-NOT-JSON-OBJECT"),
    ("a family that is unknown", f"{REFERENCE} --model {{of_no_family}} --text {{text}}", "no_such_family", "MODEL-NOT-BUILT"),
    ("a family that is a list", f"{REFERENCE} --model {{of_a_list}} --text {{text}}", "config.json", "MODEL-NOT-BUILT"),
    ("no family", f"{REFERENCE} --model {{without_a_family}} --text {{text}}", "no model_type", "MODEL-NOT-BUILT"),
    ("the config.json of another family", f"{REFERENCE} --model {{of_gpt2}} --text {{text}}", "of_gpt2", "MODEL-NO-TENSOR"),
    ("the config.json of a wider model", f"{REFERENCE} --model {{wider_config}} --text {{text}}", "wider_config", "MODEL-BAD-SHAPE"),
    ("the config.json of a deeper model", f"{REFERENCE} --model {{more_blocks}} --text {{text}}", "model.layers.2", "MODEL-NO-TENSOR"),
    ("a config.json with no blocks", f"{REFERENCE} --model {{no_blocks}} --text {{text}}", "no_blocks", "MODEL-NO-LAYERS"),
    ("a width that is a word", f"{REFERENCE} --model {{worded_config}} --text {{text}}", "'hidden_size'", "MODEL-NOT-BUILT"),
    ("a model with 0 heads", f"{REFERENCE} --model {{no_heads}} --text {{text}}", "config.json", "MODEL-NOT-BUILT"),
    ("no tokenizer", f"{REFERENCE} --model {{no_tokenizer}} --text {{text}}", "no_tokenizer", "MODEL-NO-TOKENIZER"),
    ("a broken tokenizer", f"{REFERENCE} --model {{broken_tokenizer}} --text {{text}}", "broken_tokenizer", "MODEL-NO-TOKENIZER"),
    ("tokens beyond the embedding", f"{REFERENCE} --model {{few_tokens}} --text {{text}}", "model.embed_tokens.weight", "MODEL-TOKEN-OUT-OF-RANGE"),
    ("no embedding", f"{REFERENCE} --model {{without_embedding}} --text {{text}}", "without_embedding", "MODEL-NO-TENSOR"),
    ("a layer with NaN: statistics", f"{STATS} --model {{nan_layer}}", "layers.0.self_attn.q_proj.weight", "MODEL-NOT-FINITE"),
    ("a layer with infinity: statistics", f"{STATS} --model {{infinite_layer}}", "q_proj.weight", "MODEL-NOT-FINITE"),
    ("a layer with NaN: perplexity", f"{PPL} --model {{nan_layer}}", "q_proj.weight", "MODEL-NOT-FINITE"),
    ("a layer with NaN: search", f"{ADAPTIVE} --model {{nan_layer}}", "q_proj.weight", "MODEL-NOT-FINITE"),
    ("a layer with NaN: checkpoint", f"{QUANTIZE} {{nan_layer}}", "q_proj.weight", "MODEL-NOT-FINITE"),
    ("a layer with NaN: GGUF", f"{EXPORT} {{nan_layer}}", "q_proj.weight", "MODEL-NOT-FINITE"),
    ("a layer with NaN: conversion", "convert_gguf.py --model {nan_layer} --output {tmp}/o", "q_proj.weight", "MODEL-NOT-FINITE"),
    ("a norm with NaN: perplexity", f"{PPL} --model {{nan_norm}}", "norm.weight", "MODEL-NOT-FINITE"),
    ("an embedding with NaN: perplexity", f"{PPL} --model {{nan_embedding}}", "embed_tokens.weight", "MODEL-NOT-FINITE"),
    ("an output with NaN: perplexity", f"{PPL} --model {{nan_output}}", "lm_head.weight", "MODEL-NOT-FINITE"),
    ("an output with NaN: checkpoint", f"{QUANTIZE} {{nan_output}}", "lm_head.weight", "MODEL-NOT-FINITE"),
    ("a file with NaN", f"{EXPORT} {{tiny}} --base {{gguf_with_nan}}", "output_norm.weight", "MODEL-NOT-FINITE"),
    # -- model.json
    ("a model.json that is cut short", f"{BITS} {{plan}} --model {{files}}/broken.json", "broken.json", "FILE-NOT-JSON"),
    ("a model.json that is a list", f"{BITS} {{plan}} --model {{files}}/list.json", "list.json", "FILE-NOT-JSON-OBJECT"),
    ("another result for a model.json", f"{BITS} {{plan}} --model {{files}}/bits.json", "model.json", "MODEL-INFO-INVALID"),
    ("a model.json of another schema", f"{BITS} {{plan}} --model {{of_another_schema}}", "schema_version is 99", "MODEL-INFO-INVALID"),
    ("a model.json whose model is gone", f"{PPL} --model {{moved_away}}", "gone", "MODEL-NO-CONFIG"),
    ("a model.json whose model is another", f"{QUANTIZE} {{changed_since}}", "changed_since.json", "MODEL-INFO-MISMATCH"),
    # -- plans
    ("a plan that is cut short", f"{BITS} {{files}}/broken.json", "broken.json", "FILE-NOT-JSON"),
    ("a plan that is a list", f"{BITS} {{files}}/list.json", "list.json", "FILE-NOT-JSON-OBJECT"),
    ("a plan that is empty", f"{BITS} {{files}}/nothing", "nothing", "FILE-NOT-JSON"),
    ("a plan that is no text", f"{BITS} {{files}}/binary.json", "binary.json", "FILE-NOT-JSON"),
    ("a plan of 100000 lists", f"{BITS} {{files}}/nested.json", "nested.json", "FILE-NOT-JSON"),
    ("another result for a plan", f"{BITS} {{files}}/bits.json", "avg_bits", "PLAN-UNKNOWN-KEY"),
    ("a plan for another model", f"{BITS} {{plan_of_another}}", "plan_of_another.json", "PLAN-OTHER-MODEL"),
    ("a format that is unknown", f"{BITS} {{plan_of_no_format}}", "default.wq", "PLAN-UNKNOWN-FORMAT"),
    ("a format that is a list", f"{BITS} {{plan_of_a_listed_format}}", "default.wq", "PLAN-UNKNOWN-FORMAT"),
    ("a weight format for activations", f"{BITS} {{plan_of_weight_activations}}", "overrides[0].aq", "PLAN-WEIGHTS-ONLY"),
    ("a pattern that matches nothing", f"{BITS} {{plan_of_no_layer}}", "'model.layers.7.*'", "PLAN-NO-MATCH"),
    ("a misspelt part", f"{BITS} {{plan_misspelt}}", "overides", "PLAN-UNKNOWN-KEY"),
    ("a misspelt key", f"{BITS} {{plan_key_misspelt}}", "overrides[0].wqq", "PLAN-UNKNOWN-KEY"),
    ("overrides that are no list", f"{BITS} {{plan_of_one_object}}", "overrides", "PLAN-NOT-LIST"),
    ("an override without pattern", f"{BITS} {{plan_without_pattern}}", "overrides[0]", "PLAN-NOT-OBJECT"),
    ("a pattern that is a number", f"{BITS} {{plan_of_a_numbered_pattern}}", "overrides[0]", "PLAN-NOT-OBJECT"),
    ("a default that is a list", f"{BITS} {{plan_of_a_listed_default}}", "default", "PLAN-NOT-OBJECT"),
    ("a summary that is a word", f"{BITS} {{plan_of_a_worded_summary}}", "search_summary", "PLAN-NOT-OBJECT"),
    ("a target that is a word in a plan", f"{BITS} {{plan_of_a_worded_target}}", "target_avg_bits", "PLAN-BAD-TARGET"),
    ("a pattern for what is outside", f"{BITS} {{plan_of_all_outside}}", "overrides[0].embeddings", "PLAN-EMBEDDINGS-NAME"),
    ("an unknown format outside", f"{PPL} --plan {{plan_of_no_format_outside}}", "overrides[0].wq", "PLAN-UNKNOWN-FORMAT"),
    ("activations of an embedding", f"{EXPORT.replace('{plan}', '{plan_of_activations_outside}')} {{tiny}} --base {{gguf}}",
     "overrides[0].aq", "PLAN-EMBEDDINGS-INPUTS"),
    ("outside without anchors", f"{SENSITIVITY} --embeddings q8_0", "--embeddings", "SENSITIVITY-NEEDS-KL"),
    ("an unknown format to measure outside", f"{SENSITIVITY} --anchors all --embeddings q6_kk", "'q6_kk'", "FORMAT-UNKNOWN"),
    ("a skip that is a word", f"{BITS} {{plan_of_a_worded_skip}}", "overrides[0].skip", "PLAN-NOT-BOOLEAN"),
    *(
        (f"a group of {name}", f"{BITS} {{plan_group_{name}}}", f"default.group_size: {shown}", "PLAN-BAD-GROUP")
        for name, shown in {"zero": "0", "negative": "-1", "true": "True", "text": "'32'", "half": "1.5"}.items()
    ),
    ("a target missed", f"{BITS} {{plan}} --target-avg-bits 4 --on-miss fail", "plan.json", "PLAN-OVER-TARGET"),
    # -- tables and importance
    ("statistics of another model", f"{ADAPTIVE} --layer-stats {{table_of_another}}", "table_of_another", "STATS-NO-ROW"),
    ("statistics without alpha", f"{ADAPTIVE} --layer-stats {{table_without_alpha}}", "alpha_hill", "TABLE-NO-COLUMN"),
    ("statistics with words", f"{ADAPTIVE} --layer-stats {{table_of_words}}", "'high'", "STATS-BAD-CELL"),
    ("statistics that are no text", f"{ADAPTIVE} --layer-stats {{files}}/binary.json", "binary.json", "TABLE-NOT-TABLE"),
    ("statistics of no bytes", f"{ADAPTIVE} --layer-stats {{files}}/nothing", "nothing", "TABLE-NO-COLUMN"),
    ("importance of another model", f"{PPL} --imatrix {{importance_of_another}}", "q_proj", "IMATRIX-OTHER-MODEL"),
    ("importance of another width", f"{EXPORT} {{tiny}} --base {{gguf}} --imatrix {{importance_too_short}}", "64",
     "IMATRIX-OTHER-MODEL"),
    ("importance of another model: sensitivity", f"{SENSITIVITY} --imatrix {{importance_of_another}}", "q_proj", "IMATRIX-OTHER-MODEL"),
    ("importance of another model: search", f"{ADAPTIVE} --imatrix {{importance_of_another}}", "q_proj", "IMATRIX-OTHER-MODEL"),
    ("importance of another model: baseline", f"{BASELINE} {{gguf}} --model {{tiny}} --imatrix {{importance_of_another}}", "q_proj",
     "IMATRIX-OTHER-MODEL"),
    ("importance without a model: baseline", f"{BASELINE} {{gguf}} --imatrix {{importance_of_another}}", "--imatrix and --model", "GGUF-IMATRIX-WITHOUT-MODEL"),
    ("importance for a file of another model", f"{BASELINE} {{gguf_of_another}} --model {{tiny}} --imatrix {{importance}}",
     "gguf_of_another", "GGUF-BAD-SHAPE"),
    ("a text for importance", f"{TASKS} --imatrix {{text}}", "calibration.txt", "IMATRIX-INVALID"),
    ("weights for importance", f"{QUANTIZE} {{tiny}} --imatrix {{tiny}}/model.safetensors", "q_proj", "IMATRIX-OTHER-MODEL"),
    # -- GGUF files
    *(
        (f"a file to {what} that is {cut}", f"{line} {{gguf_{cut}}}", f"gguf_{cut}", code)
        for cut in ("of_10_bytes", "cut_in_the_header", "cut_in_the_data")
        for what, line, code in (
            ("export", f"{EXPORT} {{tiny}} --base", "GGUF-INVALID"),
            ("score", f"{PPL} --gguf", "GGUF-NOT-LOADED"),
            ("quantize", BASELINE, "GGUF-NOT-QUANTIZED"),
        )
    ),
    ("a file to time that is cut short", f"{SPEED} a={{gguf_cut_in_the_data}}", "gguf_cut_in_the_data", "GGUF-NOT-LOADED"),
    ("an unknown runtime", f"{OF_RUNTIME} ggfu", "runtime 'ggfu'", "RUNTIME-UNKNOWN"),
    ("a palette of no runtimes", f"{OPTIMAL} --palette runtime", "--palette runtime", "RUNTIME-NO-PALETTE"),
    ("sizes of no runtimes", f"{OPTIMAL} --sizes stored", "--sizes stored", "RUNTIME-NO-PALETTE"),
    ("a search for an unknown runtime", f"{OPTIMAL} --palette runtime --runtimes ggfu", "runtime 'ggfu'", "RUNTIME-UNKNOWN"),
    ("a palette of runtimes and a format", f"{OPTIMAL} --palette runtime q8_0 --runtimes gguf", "--palette runtime", "SENSITIVITY-BAD-PALETTE"),
    ("a folder of packed tensors that is in use", f"{OF_RUNTIME} compressed_tensors --output {{full_folder}}", "full_folder", "OUTPUT-EXISTS"),
    ("an artifact that is not there", f"{PPL} --artifact {{tmp}}/m --runtime compressed_tensors", "/m", "INPUT-MISSING"),
    ("a text to export from", f"{EXPORT} {{tiny}} --base {{text}}", "calibration.txt", "GGUF-NOT-GGUF"),
    ("a text to score", f"{PPL} --gguf {{text}}", "calibration.txt", "GGUF-NOT-GGUF"),
    ("a text to quantize", f"{BASELINE} {{text}}", "calibration.txt", "GGUF-NOT-GGUF"),
    ("a text to time", f"{SPEED} a={{text}}", "calibration.txt", "GGUF-NOT-GGUF"),
    ("a text to count bits of", f"{BITS} {{plan}} --gguf {{text}}", "calibration.txt", "GGUF-NOT-GGUF"),
    ("a file of another model to export from", f"{EXPORT} {{tiny}} --base {{gguf_of_another}}", "gguf_of_another", "GGUF-BAD-SHAPE"),
    ("a file of another model to score", f"{PPL} --gguf {{gguf_of_another}}", "gguf_of_another", "GGUF-NOT-LOADED"),
    ("a file of no model to export from", f"{EXPORT} {{tiny}} --base {{gguf_of_no_model}}", "gguf_of_no_model", "GGUF-INVALID"),
    ("a file of no model to quantize", f"{BASELINE} {{gguf_of_no_model}}", "gguf_of_no_model", "GGUF-NOT-QUANTIZED"),
    ("a file without a name", f"{SPEED} {{gguf}}", "NAME=FILE", "SPEED-NOT-NAME-FILE"),
    ("a name without a file", f"{SPEED} a=", "'a='", "SPEED-NOT-NAME-FILE"),
    ("a file to time that is not there", f"{SPEED} a={{tmp}}/no.gguf", "no.gguf", "INPUT-MISSING"),
    ("two files of one name", f"{SPEED} a={{gguf}} a={{gguf_with_nan}}", "'a'", "SPEED-NAME-TWICE"),
    # -- tasks
    ("a task that is unknown", f"{TASKS} --tasks demo_storys", "'demo_storys'", "TASKS-UNKNOWN"),
    ("a metric that is unknown", f"{ADAPTIVE} --task demo_memory --metric ppl --task-limit 1", "'ppl'", "TASKS-NO-METRIC"),
    ("a task that is no YAML", f"{TASKS} --tasks mine --include-path {{tasks_of_no_yaml}}", "mine", "TASKS-NOT-YAML"),
    ("a task without data", f"{TASKS} --tasks mine --include-path {{tasks_without_data}}", "task mine", "TASKS-NOT-LOADED"),
    ("a task of an unknown kind", f"{TASKS} --tasks mine --include-path {{tasks_of_unknown_kind}}", "task mine", "TASKS-NOT-LOADED"),
    ("a task of another field", f"{TASKS} --tasks mine --include-path {{tasks_of_another_field}}", "task mine", "TASKS-NOT-LOADED"),
    # -- results
    ("a missing result", f"{REPORT} {{results}}", "one/perplexity.json", "REPORT-NO-RESULT"),
    ("an agreement that is none", f"{REPORT} {{results}} --agreement {{files}}/bits.json", "bits.json", "REPORT-NO-AGREEMENT"),
    ("a result without speed", f"{REPORT} {{results_without_speed}}", "speed.json", "REPORT-NO-FIGURE"),
    ("a plan that has no results", f"{REPORT} {{results}} --plan two", "plans/two", "REPORT-NO-RESULT"),
    # -- outputs
    ("an output that is a folder", f"{PPL} --output {{folder}}", "folder", "OUTPUT-UNWRITABLE"),
    ("an output below a file", f"{PPL} --output {{plan}}/out.json", "plan.json", "OUTPUT-UNWRITABLE"),
    ("an output under /proc", f"{PPL} --output /proc/none/out.json", "/proc", "OUTPUT-UNWRITABLE"),
    ("a folder that holds something", f"{QUANTIZE} {{tiny}} --output {{full_folder}}", "full_folder", "OUTPUT-EXISTS"),
    ("a folder that is a file", f"{QUANTIZE} {{tiny}} --output {{plan}}", "plan.json", "OUTPUT-EXISTS"),
    ("a folder that is the model's", f"{QUANTIZE} {{tiny}} --output {{tiny}}", "model", "OUTPUT-EXISTS"),
    ("a folder below a file", "example_adaptive_search.py --output {plan}/out", "plan.json", "OUTPUT-UNWRITABLE"),
    ("a download into a file", "download_model.py --model a/b --output {plan}", "plan.json", "OUTPUT-UNWRITABLE"),
    ("an output that is the base", f"{EXPORT} {{tiny}} --base {{gguf}} --output {{gguf}}", "gguf", "OUTPUT-IS-INPUT"),
    ("a recipe over its base", "baseline_gguf.py --base {gguf} --output {gguf}", "gguf", "OUTPUT-IS-INPUT"),
    ("an output that is the text", f"{REFERENCE} --model {{tiny}} --text {{text}} --output {{text}}", "calibration.txt", "OUTPUT-IS-INPUT"),
    ("an output that is the plan", f"{PPL} --plan {{plan}} --output {{plan}}", "plan.json", "OUTPUT-IS-INPUT"),
    ("an output that is timed", f"{SPEED} a={{gguf}} --output {{gguf}}", "gguf", "OUTPUT-IS-INPUT"),
    ("an output that is config.json", f"{RANDOM} --output-config {{tiny}}/config.json", "config.json", "OUTPUT-IN-MODEL"),
    ("an output that is weights", "teacher.py --model {tiny} --text {text} --output {tiny}/more.safetensors", "more.safetensors",
     "OUTPUT-IN-MODEL"),
    ("importance that would be weights", "layer_stats.py --model {tiny} --calibration {text} --output {tiny}/layer_stats.tsv", "layer_stats.safetensors",
     "OUTPUT-IN-MODEL"),
    ("two outputs of one name", f"{RANDOM} --output-plan {{tmp}}/c.json", "c.json", "OUTPUT-TWICE"),
    # -- W4 with A4 or A8
    ("an unknown format in a palette", f"{MEASURED} --palette q8_00 --target-avg-bits 8", "q8_00", "SENSITIVITY-BAD-PALETTE"),
    ("an unknown format to measure", f"{SENSITIVITY} --palette q8_00", "q8_00", "SENSITIVITY-BAD-PALETTE"),
    ("a palette without a target", f"{MEASURED} --palette q8_0", "--palette and --target-avg-bits", "GENETIC-BAD-FLAGS"),
    ("a target without a palette", f"{MEASURED} --target-avg-bits 8", "--palette and --target-avg-bits", "GENETIC-BAD-FLAGS"),
    ("a palette without an output", f"{MEASURED} --palette q8_0 --target-avg-bits 15", "--palette", "GENETIC-NO-OUTPUT"),
    ("a compression out of reach", f"{MEASURED} --target_compression 0.5", "--target_compression", "SEARCH-TARGET-OUT-OF-REACH"),
    ("a compression that is a word", f"{MEASURED} --target_compression always", "--target-compression", "FLAGS-INVALID"),
    ("a compression over 1", f"{MEASURED} --target_compression 1.5", "--target-compression", "FLAGS-INVALID"),
    ("average bits out of reach", f"{MEASURED} --palette q8_0 int4 --target-avg-bits 5 --output-plan {{tmp}}/p.json",
     "--target-avg-bits", "SEARCH-TARGET-OUT-OF-REACH"),
    ("a population of 2", f"{SEARCH} --ga_pop 2", "--ga-pop", "FLAGS-INVALID"),
    ("a format that needs importance: sensitivity", f"{SENSITIVITY} --palette q4_0 iq2_s", "iq2_s", "FORMAT-NEEDS-IMPORTANCE"),
    ("a format that needs importance: adaptive", f"{ADAPTIVE} --formats iq3_xxs q8_0", "iq3_xxs", "FORMAT-NEEDS-IMPORTANCE"),
    ("an alpha over 1", f"{SENSITIVITY} --smooth-alpha 1.5", "--smooth-alpha", "FLAGS-INVALID"),
    ("a layer with NaN: sensitivity", "sensitivity.py --model {nan_layer} --calibration {text} --length 16 --sequences 2 --output {tmp}/s.tsv",
     "q_proj.weight", "MODEL-NOT-FINITE"),
    ("a layer with NaN: measured", "sensitivity.py --model {nan_layer} --calibration {text} --length 16 --sequences 2 --output {tmp}/s.tsv --anchors all",
     "q_proj.weight", "MODEL-NOT-FINITE"),
    ("a share that is none", f"{SENSITIVITY} --shard 3/2", "--shard", "FLAGS-INVALID"),
    ("more shares than layers", f"{SENSITIVITY} --shard 1/15", "--shard", "SENSITIVITY-TOO-MANY-SHARDS"),
    ("memory without a unit", f"{SENSITIVITY} --memory-limit 4", "--memory-limit", "FLAGS-INVALID"),
    ("memory for no candidate", f"{SENSITIVITY} --anchors all --memory-limit 1KB", "--memory-limit", "SENSITIVITY-MEMORY"),
    ("anchors that are none", f"{SENSITIVITY} --anchors 3", "--anchors", "FLAGS-INVALID"),
    ("anchors without a palette", f"{SENSITIVITY} --anchors 2", "--anchors", "SENSITIVITY-NO-PALETTE"),
    ("anchors on Gaussian inputs", f"{SENSITIVITY} --anchors all --random", "--anchors, --metric gradient, --fisher and --shard", "SENSITIVITY-NEEDS-TEXT"),
    ("statistics of another model: sensitivity", f"{SENSITIVITY} --layer-stats {{table_of_another}}", "model.layers.0",
     "STATS-NO-ROW"),
    ("a shard that is not there", f"{MERGE} {{sensitivity}} {{tmp}}/none.tsv", "none.tsv", "INPUT-MISSING"),
    ("a shard that is no table of sensitivity", f"{MERGE} {{sensitivity}}", "sensitivity", "TABLE-NO-COLUMN"),
    ("a shard that would be overwritten", "merge_sensitivity.py --model {tiny} --tables {sensitivity} --output {sensitivity}",
     "sensitivity", "OUTPUT-IS-INPUT"),
    ("a text for sensitivity that is not there", f"{SEARCH} --calibration {{tmp}}/none.txt", "none.txt", "FILE-UNREADABLE"),
    ("a sensitivity table of another model", f"{SEARCH} --sensitivity {{sensitivity_of_another}}", "sensitivity_of_another", "SENSITIVITY-NO-ROW"),
    ("a sensitivity table of words", f"{SEARCH} --sensitivity {{sensitivity_of_words}}", "'high'",
     "SENSITIVITY-BAD-CELL"),
    ("a sensitivity table without mse", f"{SEARCH} --sensitivity {{table_of_words}}", "table_of_words", "TABLE-NO-COLUMN"),
    ("a sensitivity table of another scope", f"{FOUND} --activation-scope token", "sensitivity", "SENSITIVITY-NO-ROW"),
    ("a sensitivity table without a palette's format", f"{FOUND} --palette q5_0 --target-avg-bits 15 --output-plan {{tmp}}/p.json",
     "q5_0", "SENSITIVITY-NO-ROW"),
    ("a metric without figures", f"{FOUND} --metric kld", "kld", "SENSITIVITY-NO-FIGURES"),
    ("factors of another table", f"{SEARCH} --sensitivity {{sensitivity_with_foreign_factors}}", "sensitivity_with_foreign_factors.smoothing.safetensors",
     "SMOOTHING-OTHER-PLAN"),
    ("an alpha beside a table", f"{SEARCH} --sensitivity {{sensitivity}} --smooth-alpha 0.9", "--smooth-alpha", "SENSITIVITY-TABLE-AND-FLAGS"),
    ("an alpha for inputs that layers choose",
     f"{MEASURED} --palette mxfp4/mxfp4 bf16 --target-avg-bits 15 --smooth-alpha 0.5 --output-plan {{tmp}}/p.json",
     "--smooth-alpha", "GENETIC-BAD-FLAGS"),
    ("an error of weights alone for activations", f"{MEASURED} --metric weighted_error", "--metric", "GENETIC-BAD-FLAGS"),
    ("factors that are broken", f"{SEARCH} --sensitivity {{sensitivity_with_broken_factors}}", "sensitivity_with_broken_factors.smoothing.safetensors",
     "SMOOTHING-INVALID"),
    *(
        (f"{what} of torch: {each}", f"{line} {{{name}}}", name, "TORCHCONFIG-INVALID")
        for each, line in {"export": OFFICIAL, "simulation": SIMULATED}.items()
        for what, name in {"code": "pt_of_code", "a list": "pt_of_a_list", "part of a file": "pt_cut_short"}.items()
    ),
    ("a configuration of another model", f"{OFFICIAL} {{pt_of_another}}", "model.layers.9", "TORCHCONFIG-OTHER-MODEL"),
    ("a configuration without its factors", f"{SIMULATED} {{pt_without_factors}}", "pt_without_factors.smoothing.safetensors", "SMOOTHING-INVALID"),
    ("a configuration that is not there", f"{OFFICIAL} {{tmp}}/m.pt", "m.pt", "INPUT-MISSING"),
    ("a Q4_K_M file that is not there", "compare_real_quant.py --skip_original --q4km_path {tmp}/q.gguf --mixed_path {gguf}",
     "q.gguf", "INPUT-MISSING"),
    ("a mixed file that is not there", f"{THREE} {{tmp}}/mixed.gguf", "mixed.gguf", "INPUT-MISSING"),
    ("no files at the document's places", "compare_real_quant.py", "models/qwen2.5-7b-mixed.gguf",
     "INPUT-MISSING"),
    ("a text for a mixed file", f"{THREE} {{text}}", "calibration.txt", "GGUF-NOT-GGUF"),
    # -- the allocation of bits
    ("a damage that is NaN", f"{ALLOCATE} {{damages_of_nan}}", "lines 6, 7", "SENSITIVITY-BAD-CELL"),
    ("a row of damages there twice", f"{ALLOCATE} {{damages_twice}}", "line 6", "SENSITIVITY-ROW-TWICE"),
    ("params that differ", f"{ALLOCATE} {{damages_of_other_params}}", "blk.0.up", "SENSITIVITY-UNEQUAL-ROWS"),
    ("a sensitivity table without damages", f"{ALLOCATE} {{sensitivity}}", "sensitivity", "TABLE-NO-COLUMN"),
    ("a text for a table", f"{ALLOCATE} {{text}}", "calibration.txt", "TABLE-NO-COLUMN"),
    ("a table of damages that is not there", f"{ALLOCATE} {{tmp}}/s.csv", "s.csv", "INPUT-MISSING"),
    ("no target", "allocate_bits.py --sensitivity {damages} --output {tmp}/front.json", "targets", "ALLOCATE-NO-TARGET"),
    ("bits out of reach", f"{ALLOCATE} {{damages}} --target-avg-bits 2", "--target-avg-bits 2", "SEARCH-TARGET-OUT-OF-REACH"),
    ("a damage out of reach", f"{ALLOCATE} {{damages}} --max-kld 0.1", "--max-kld 0.1", "SEARCH-TARGET-OUT-OF-REACH"),
    ("bits that are a word", f"{ALLOCATE} {{damages}} --target-avg-bits many", "'many'", "FLAGS-INVALID"),
    ("a protected layer that is not there", f"{ALLOCATE} {{damages}} --protect blk.9.up", "blk.9.up", "ALLOCATE-NO-MATCH"),
    ("a floor of no format", f"{ALLOCATE} {{damages}} --floor *=q7_K", "'q7_K'", "ALLOCATE-UNKNOWN-FORMAT"),
    ("a floor over a protected group", f"{ALLOCATE} {{damages}} --groups blk.**.up --protect blk.0.up=q4_K --floor *=q8_0",
     "blk.0.up", "ALLOCATE-INFEASIBLE"),
    ("groups that are not there", f"{ALLOCATE} {{damages}} --groups {{tmp}}/g.tsv", "g.tsv", "GROUPS-INVALID"),
    ("groups of another table", f"{ALLOCATE} {{damages}} --groups {{damages}}", "damages", "TABLE-NO-COLUMN"),
    ("a table of damages to write over", "allocate_bits.py --target-avg-bits 6 --sensitivity {damages} --output {damages}",
     "damages", "OUTPUT-IS-INPUT"),
    ("groups to write over", "allocate_bits.py --target-avg-bits 6 --sensitivity {damages} --groups {plan} --output {plan}",
     "plan.json", "OUTPUT-IS-INPUT"),
    # -- the model hub
    ("an unknown id, offline", f"{DESCRIBE} no-such/model", "no-such/model", "HUB-OFFLINE"),
    ("an unknown id to fetch, offline", "download_model.py --model no-such/model --output {tmp}/m", "no-such/model", "HUB-OFFLINE"),
    ("an id that is none", "download_model.py --model ../model --output {tmp}/m", "../model", "HUB-BAD-ID"),
    ("a revision of a folder", f"{DESCRIBE} {{tiny}} --revision main", "--revision", "HUB-REVISION-OF-FOLDER"),
    ("a revision that is a path", f"{DESCRIBE} no-such/model --revision ../x", "../x", "HUB-BAD-REVISION"),
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


@pytest.mark.parametrize(("line", "place", "code"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_ends_with_a_code_its_place_and_a_hint_and_leaves_nothing(line, place, code, invoke, shelf, tmp_path):
    name, *words = (filled(word, shelf, tmp_path) for word in shlex.split(line))
    folders = (shelf.folder, shelf["tiny"])
    before = [stamps(folder) for folder in folders]
    check_problem(invoke(name, *words), code, place)
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
    way_out = "usage: set_up.py" if name == "set_up.py" else "error [FLAGS-UNKNOWN] "
    check(invoke(name, "--no-such-flag", "1"), "--no-such-flag", way_out)


REQUIRED = [
    ("adaptive_quantization_search.py", "--model, --output-config, --output-plan"),
    ("allocate_bits.py", "--sensitivity, --output"),
    ("baseline_gguf.py", "--base, --output"),
    ("calculate_avg_bits.py", "--config, --model"),
    ("check_runtime.py", "--model, --plan, --runtime"),
    ("check_served_model.py", "--model"),
    ("compare_formats.py", "--model"),
    ("convert_gguf.py", "--model, --output"),
    ("describe_model.py", "--model, --output"),
    ("download_model.py", "--model, --output"),
    ("eval_with_lm_eval.py", "--model"),
    ("export_gguf.py", "--model, --plan, --output, --report"),
    ("export_plan.py", "--runtime, --model, --plan, --output, --report"),
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
    check(invoke(name), f"the following arguments are required: {flags}", "error [FLAGS-INVALID] ")


@pytest.mark.parametrize("name", [name for name, _ in REQUIRED])
def test_a_flag_without_its_value_is_named(name, invoke):
    flag = dict(REQUIRED)[name].split(", ")[0]
    check(invoke(name, flag), f"argument {flag}: expected", "error [FLAGS-INVALID] ")


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


FREE = "error [SYSTEM-DISK-FULL] "
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
    ("a recipe", f"{BASELINE} {{gguf}} --recipe f16", "error [GGUF-NOT-QUANTIZED] "),
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
    check(invoke(name, *words), f"{folder}: Read-only file system", "error [OUTPUT-UNWRITABLE] ")


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
    check(invoke(name, *words), "PPL inf, full precision PPL inf", "error [SCORES-NOT-FINITE] ")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- configuration

MODEL = {"path": "m", "calibration": "c.txt", "evaluation": "e.txt"}
ADAPTIVE_PLAN, RANDOM_PLAN = {"method": "adaptive"}, {"method": "random"}


def plan(**changes: object) -> dict:
    return {"plans": {"one": {**ADAPTIVE_PLAN, **changes}}}


def drawn(**changes: object) -> dict:
    return {"plans": {"one": {**RANDOM_PLAN, **changes}}}


SETTINGS = [
    ("an unknown section", {"modells": {}}, "modells", "SETTINGS-UNKNOWN-KEY"),
    ("a section like no other", {"xyz": 1}, "xyz", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of a model", {"models": {"m": {**MODEL, "pth": "x"}}}, "models.m.pth", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of an adaptive plan", plan(step=1), "plans.one.step", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of a random plan", drawn(mxfp8_ratio=1), "plans.one.mxfp8_ratio", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of a check", plan(check={"on": "fail"}), "plans.one.check.on", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of compute", {"compute": {"devise": "cpu"}}, "compute.devise", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of calibration", {"calibration": {"len": 2}}, "calibration.len", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of evaluation", {"evaluation": {"len": 2}}, "evaluation.len", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of export", {"export": {"type": "f16"}}, "export.type", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of speed", {"speed": {"repeat": 2}}, "speed.repeat", "SETTINGS-UNKNOWN-KEY"),
    ("an unknown key of tasks", {"tasks": {"name": []}}, "tasks.name", "SETTINGS-UNKNOWN-KEY"),
    ("a model without texts", {"models": {"m": {"path": "x"}}}, "models.m.calibration", "SETTINGS-MISSING"),
    ("no models", {"models": {}}, "models", "SETTINGS-INVALID"),
    ("a model that is a word", {"models": {"m": "demo"}}, "models.m", "SETTINGS-INVALID"),
    ("plans that are a list", {"plans": ["adaptive"]}, "plans", "SETTINGS-INVALID"),
    ("a plan that is a word", {"plans": {"one": "adaptive"}}, "plans.one", "SETTINGS-INVALID"),
    ("a plan without method", {"plans": {"one": {}}}, "plans.one", "SETTINGS-NO-METHOD"),
    ("a method that is unknown", {"plans": {"one": {"method": "genetics"}}}, "plans.one", "SETTINGS-INVALID"),
    (
        "a ratio over 1 in a plan",
        drawn(mxfp4_ratio=1.5),
        "plans.one.mxfp4_ratio",
        "SETTINGS-OUT-OF-RANGE",
    ),
    (
        "ratios over 1 together in a plan",
        drawn(mxfp4_ratio=0.7, bf16_ratio=0.6),
        "plans.one.bf16_ratio",
        "SETTINGS-INVALID",
    ),
    ("a negative step in a plan", plan(step_size=-1), "plans.one.step_size", "SETTINGS-OUT-OF-RANGE"),
    ("a step of NaN in a plan", plan(step_size=float("nan")), "plans.one.step_size", "SETTINGS-OUT-OF-RANGE"),
    ("an infinite step in a plan", plan(step_size=float("inf")), "plans.one.step_size", "SETTINGS-OUT-OF-RANGE"),
    ("a threshold of 0 in a plan", plan(ppl_threshold=0), "plans.one.ppl_threshold", "SETTINGS-OUT-OF-RANGE"),
    ("a target over 16", plan(target_avg_bits=17), "plans.one.target_avg_bits", "SETTINGS-OUT-OF-RANGE"),
    (
        "a target that is a word in the settings",
        plan(target_avg_bits="eight"),
        "plans.one.target_avg_bits",
        "SETTINGS-INVALID",
    ),
    ("an unknown format in a plan", plan(formats=["mxfp44"]), "plans.one.formats.0", "SETTINGS-INVALID"),
    ("formats that are a word", plan(formats="mxfp4"), "plans.one.formats", "SETTINGS-INVALID"),
    (
        "a palette of runtimes and more",
        {"plans": {"one": {"method": "optimal", "target_avg_bits": 6, "palette": ["runtime", "q4_k"]}}},
        "plans.one.palette",
        "SETTINGS-INVALID",
    ),
    ("anchors of three", {"sensitivity": {"anchors": 3}}, "sensitivity.anchors", "SETTINGS-NOT-A-CHOICE"),
    ("anchors that are yes", {"sensitivity": {"anchors": True}}, "sensitivity.anchors", "SETTINGS-INVALID"),
    ("anchors of no palette", {"sensitivity": {"anchors": "2"}}, "sensitivity", "SETTINGS-INVALID"),
    ("memory that is none", {"sensitivity": {"memory_limit": "much"}}, "sensitivity.memory_limit", "SETTINGS-INVALID"),
    ("no shards", {"sensitivity": {"shards": 0}}, "sensitivity.shards", "SETTINGS-OUT-OF-RANGE"),
    (
        "a measurement on Gaussian inputs",
        {"sensitivity": {"random": True, "fisher": True}},
        "sensitivity",
        "SETTINGS-INVALID",
    ),
    ("no formats", plan(formats=[]), "plans.one.formats", "SETTINGS-INVALID"),
    ("a group that is half", plan(group_size=1.5), "plans.one.group_size", "SETTINGS-INVALID"),
    ("an unknown recipe in the settings", {"baselines": ["q4_kk"]}, "baselines.0", "SETTINGS-NOT-A-CHOICE"),
    (
        "outside without anchors in the settings",
        {"sensitivity": {"embeddings": ["q6_k"], "metric": "measured"}},
        "sensitivity",
        "SETTINGS-INVALID",
    ),
    (
        "an unknown format outside in the settings",
        {"sensitivity": {"embeddings": ["q6_kk"]}},
        "sensitivity.embeddings.0",
        "SETTINGS-INVALID",
    ),
    ("an importance matrix that is a file", {"imatrix": "layer_stats.safetensors"}, "imatrix", "SETTINGS-INVALID"),
    ("a recipe that cannot use importance", {"baselines": ["f16_imatrix"]}, "baselines.0", "SETTINGS-NOT-A-CHOICE"),
    ("an unknown dtype in the settings", {"compute": {"dtype": "fp8"}}, "compute.dtype", "SETTINGS-NOT-A-CHOICE"),
    ("an unknown device in the settings", {"compute": {"device": "gpu"}}, "compute.device", "SETTINGS-INVALID"),
    ("a window of 1 token", {"evaluation": {"length": 1}}, "evaluation.length", "SETTINGS-OUT-OF-RANGE"),
    ("repeats that are a word", {"speed": {"repeats": "many"}}, "speed.repeats", "SETTINGS-INVALID"),
    (
        "a tolerance below 0 in a check",
        plan(check={"tolerance": -1}),
        "plans.one.check.tolerance",
        "SETTINGS-OUT-OF-RANGE",
    ),
    ("a name with a space", {"plans": {"a b": RANDOM_PLAN}}, "plans.a b", "SETTINGS-INVALID"),
    ("a name that leads elsewhere", {"plans": {"../x": RANDOM_PLAN}}, "plans.../x", "SETTINGS-INVALID"),
    ("a plan with the name of a baseline", {"plans": {"f16": RANDOM_PLAN}}, "configuration", "SETTINGS-INVALID"),
]


@pytest.mark.parametrize(("changes", "place", "code"), [case[1:] for case in SETTINGS], ids=[c[0] for c in SETTINGS])
def test_a_wrong_setting_is_one_line_with_its_code_its_key_and_a_hint(changes, place, code):
    with pytest.raises(UserError) as caught:
        parse_settings({"models": {"demo": MODEL}, "plans": {"one": ADAPTIVE_PLAN}, **changes})
    problems = caught.value.problems
    assert (code, place) in [(problem.code, problem.where) for problem in problems], problems
    assert all(problem.hint and "\n" not in str(problem) for problem in problems), problems


CONFIGS = [
    ("no YAML", "models: [", "not valid JSON or YAML", "indentation"),
    ("a key given twice", "speed:\n  repeats: 1\n  repeats: 2\n", "repeats", "[SETTINGS-KEY-TWICE] "),
    ("an unknown key", "plans: {one: {method: adaptive, step: 1}}", "plans.one.step", "[SETTINGS-UNKNOWN-KEY] "),
    (
        "a ratio over 1",
        "plans: {one: {method: random, mxfp4_ratio: 2}}",
        "plans.one.mxfp4_ratio",
        "[SETTINGS-OUT-OF-RANGE] ",
    ),
    (
        "formats that a runtime refuses",
        "{models: {demo: {runtimes: [mlx]}}, plans: {one: {method: optimal, target_avg_bits: 6}}}",
        "plans.one.palette: has q2_k, q3_k, q4_k, q5_k, q6_k, q8_0, which mlx of model demo cannot store",
        "[RUNTIME-REFUSED] ",
    ),
    (
        "a palette of runtimes where there are none",
        "{models: {demo: {runtimes: []}}, plans: {one: {method: optimal, target_avg_bits: 6, palette: runtime}}}",
        "plans.one.palette: is runtime, and models demo name no runtime",
        "[RUNTIME-NO-PALETTE] ",
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
