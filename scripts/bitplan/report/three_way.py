"""Original against Q4_K_M against a mixed-precision file: what is compared, scored and printed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bitplan.core.errors import Problem, UserError
from bitplan.core.files import check_gguf, read_json
from bitplan.core.tables import Column, text_table
from bitplan.evaluate.scores import TokenScores, summarize
from bitplan.models.layers import model_info
from bitplan.reference.reference import Reference
from bitplan.report.metrics import SCORES
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.speed import TIMED, print_rounds, timed_row

ORIGINAL = "Original (FP32)"
SHOWN = tuple(metric for metric in SCORES if metric.heading)
KEYS = tuple(metric.source for metric in SHOWN)
NAMES = {"q4km": "Q4_K_M", "mixed": "Mixed precision"}


def compared(q4km: Path, mixed: Path) -> dict[str, Path]:
    """Return {name: path} of the two files. Raises `UserError` for absent files."""
    files = {NAMES["q4km"]: q4km, NAMES["mixed"]: mixed}
    hints = {
        NAMES["q4km"]: "Give it with --q4km_path",
        NAMES["mixed"]: "Create it with scripts/export_gguf_official.py",
    }
    absent = [
        Problem("INPUT-MISSING", str(path), "does not exist", hints[name])
        for name, path in files.items()
        if not path.is_file()
    ]
    if absent:
        raise UserError(absent)
    for path in files.values():
        check_gguf(path)
    return files


def known_original(mixed: Path) -> Path | None:
    """Return the folder of the checkpoint that a mixed file was exported from, as the record beside the file names it.

    None where the file came from elsewhere, or the checkpoint is not there any more, or is another by now.
    """
    beside = mixed.with_name(f"{mixed.name}.meta.json")
    record = read_json(beside) if beside.is_file() else {}
    folder = Path(record.get("model", ""))
    if "model" not in record or not folder.exists():
        return None
    return folder if model_info(folder).fingerprint == record.get("model_fingerprint") else None


def _of_reference(scores: TokenScores) -> TokenScores:
    """Return the scores of the reference against itself."""
    kl, agree = torch.zeros_like(scores.kl), torch.ones_like(scores.agree)
    return replace(scores, nll=scores.reference_nll, kl=kl, agree=agree)


def scored(models: Mapping[str, Path], reference: Reference, threads: int) -> dict[str, dict[str, Any]]:
    """Return {name: metrics by their key in a perplexity.json, tokens} of every file, and of the original, which is its own reference."""
    scores: dict[str, TokenScores] = {}
    original: dict[str, TokenScores] = {}
    for name, path in models.items():
        if path.is_file():
            scores[name] = score_gguf(path, reference, threads)
            original = {ORIGINAL: _of_reference(scores[name])} if ORIGINAL in models else {}
    summaries = {name: summarize(each) for name, each in {**original, **scores}.items()}
    return {name: {key: each[key] for key in (*KEYS, "tokens")} for name, each in summaries.items()}


def print_three_way(result: Mapping[str, Any]) -> None:
    """Print size, load time, speeds, ratio, memory, perplexity and KL, one line a model."""
    scores = result.get("scores", {})
    columns = tuple(Column(metric.source, metric.heading, metric.format) for metric in SHOWN if scores)
    rows = [{**timed_row(name, row), **scores.get(name, {})} for name, row in result["models"].items()]
    print(text_table(rows, (*TIMED, *columns)))
    print_rounds(result)
