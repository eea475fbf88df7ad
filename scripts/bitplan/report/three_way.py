"""Original against Q4_K_M against a mixed-precision file: what is compared, scored and printed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitplan.core.errors import Problem, UserError
from bitplan.core.files import check_gguf
from bitplan.evaluate.scores import summarize
from bitplan.reference.reference import Teacher
from bitplan.runtimes.gguf.scores import score_gguf

ORIGINAL = "Original (FP32)"
NAMES = {"q4km": "Q4_K_M", "mixed": "Mixed precision"}


def compared(q4km: Path, mixed: Path) -> dict[str, Path]:
    """Return {name: path} of the two files. Raises `UserError` for absent files."""
    files = {NAMES["q4km"]: q4km, NAMES["mixed"]: mixed}
    hints = {NAMES["q4km"]: "Give it with --q4km_path", NAMES["mixed"]: "Make it with scripts/export_gguf_official.py"}
    absent = [Problem(str(path), "does not exist", hints[name]) for name, path in files.items() if not path.is_file()]
    if absent:
        raise UserError(absent)
    for path in files.values():
        check_gguf(path)
    return files


def scored(models: Mapping[str, Path], teacher: Teacher, threads: int) -> dict[str, dict[str, Any]]:
    """Return {name: ppl, kl_mean, top1_agreement} of every file, and of the original, which is its own reference."""
    scores: dict[str, dict[str, Any]] = {}
    for name, path in models.items():
        if path.is_file():
            figures = summarize(score_gguf(path, teacher, threads))
            scores[name] = {key: figures[key] for key in ("ppl", "kl_mean", "top1_agreement", "tokens")}
            base = {"ppl": figures["base_ppl"], "kl_mean": 0.0, "top1_agreement": 1.0, "tokens": figures["tokens"]}
    return ({ORIGINAL: base} if ORIGINAL in models else {}) | scores


def print_three_way(result: Mapping[str, Any]) -> None:
    """Print size, load time, speed, ratio, perplexity and KL, one line a model."""
    print(f"{'model':<20} {'size MB':>9} {'load s':>8} {'tok/s':>10} {'ratio':>7} {'PPL':>9} {'KL':>10} {'top-1':>7}")
    for name, row in result["models"].items():
        ratio, scores = row["ratio"]["median"], result.get("scores", {}).get(name, {})
        figures = f"{scores['ppl']:>9.4f} {scores['kl_mean']:>10.6f} {scores['top1_agreement']:>7.4f}" if scores else ""
        times = "-" if ratio is None else f"{ratio:.2f}x"
        print(
            f"{name:<20} {row['file_bytes'] / 1e6:>9.2f} {row['load_seconds']['median']:>8.3f} "
            f"{row['generation_tokens_per_second']['median']:>10.1f} {times:>7} {figures}"
        )
