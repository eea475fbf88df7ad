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

from tests.broken import Shelf
from tests.conftest import ROOT, SCRIPTS
from tests.unit.cli.bad_inputs import (
    ADAPTIVE,
    ALLOCATE,
    BASELINE,
    BITS,
    CASES,
    DESCRIBE,
    EXPORT,
    PPL,
    QUANTIZE,
    RANDOM,
    REFERENCE,
    SENSITIVITY,
    SPARSEGPT,
    STATS,
)

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
    ("check_settings.py", "--model"),
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
