"""Original against Q4_K_M against a mixed-precision file: what is compared, scored and printed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitplan.core.errors import Problem, UserError
from bitplan.core.files import check_gguf, read_json
from bitplan.evaluate.scores import summarize
from bitplan.models.layers import model_info
from bitplan.reference.reference import Reference
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.speed import HEADINGS, print_columns, print_rounds, timed_cells

ORIGINAL = "Original (FP32)"
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


def scored(models: Mapping[str, Path], reference: Reference, threads: int) -> dict[str, dict[str, Any]]:
    """Return {name: ppl, kl_mean, top1_agreement} of every file, and of the original, which is its own reference."""
    scores: dict[str, dict[str, Any]] = {}
    for name, path in models.items():
        if path.is_file():
            figures = summarize(score_gguf(path, reference, threads))
            scores[name] = {key: figures[key] for key in ("ppl", "kl_mean", "top1_agreement", "tokens")}
            base = {"ppl": figures["base_ppl"], "kl_mean": 0.0, "top1_agreement": 1.0, "tokens": figures["tokens"]}
    return ({ORIGINAL: base} if ORIGINAL in models else {}) | scores


SCORES = (("PPL", "ppl", "{:.4f}"), ("KL", "kl_mean", "{:.6f}"), ("top-1", "top1_agreement", "{:.4f}"))


def print_three_way(result: Mapping[str, Any]) -> None:
    """Print size, load time, speeds, ratio, memory, perplexity and KL, one line a model."""
    scores = result.get("scores", {})
    shown = SCORES if scores else ()
    rows = [
        (name, *timed_cells(row), *(layout.format(scores[name][key]) for _, key, layout in shown))
        for name, row in result["models"].items()
    ]
    print_columns([(*HEADINGS, *(heading for heading, _, _ in shown)), *rows])
    print_rounds(result)
