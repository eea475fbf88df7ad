"""The comparison of all plans and baselines of a model: one row each, as TSV, as text and as a page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bitplan.core.errors import Problem, UserError, user_error
from bitplan.core.files import read_json

AGAIN = "Make the results again, with snakemake"
SIMULATED_FILES = ("plan.json", "bits.json", "perplexity.json")
BASELINE_FILES = ("model.gguf", "perplexity.json", "speed.json")
PLAN_FILES = ("bits.json", "plan.json", "perplexity.json", "gguf_perplexity.json", "model.gguf", "speed.json")
COLUMNS = (
    *("name", "method", "avg_bits", "avg_bits_layers", "avg_bits_file", "file_bytes"),
    *("target_avg_bits", "target_missed_by"),
    *("ppl", "ppl_error", "kl", "kl_error", "top1"),
    *("file_ppl", "file_ppl_error", "file_kl", "file_kl_error", "file_top1"),
    *(
        "tokens_per_second",
        "ratio_to_reference",
        "ratio_min",
        "ratio_max",
        "speed_stable",
        "search_evaluations",
        "search_block_forward_tokens",
    ),
)
# What the readable table shows: (column, heading, format).
SHOWN = (
    ("name", "plan", "{:<24}"),
    ("avg_bits", "bits", "{:>7.3f}"),
    ("avg_bits_layers", "layers", "{:>7.3f}"),
    ("avg_bits_file", "file", "{:>7.3f}"),
    ("file_bytes", "bytes", "{:>10,}"),
    ("ppl", "PPL", "{:>8.4f}"),
    ("kl", "KL", "{:>9.6f}"),
    ("file_ppl", "file PPL", "{:>9.4f}"),
    ("file_kl", "file KL", "{:>9.6f}"),
    ("file_top1", "top-1", "{:>7.4f}"),
    ("tokens_per_second", "tok/s", "{:>8.1f}"),
    ("ratio_to_reference", "ratio", "{:>8.2f}"),
    ("ratio_min", "min", "{:>5.2f}"),
    ("ratio_max", "max", "{:>5.2f}"),
)
LEGEND = (
    "bits: over all parameters; layers: over the quantizable layers; file: 8 x file bytes / parameters. "
    "PPL, KL: the plan with its activation formats, simulated. file PPL, file KL, top-1: the GGUF in llama.cpp, "
    "which keeps activations whole. ratio: tokens/s over the reference file in the same rounds, median, min and max; "
    "tok/s: that ratio times the reference's own speed. unstable: it varied too much between rounds; min and max are its range."
)


@dataclass(frozen=True)
class Entry:
    """A plan or a baseline: its name, its folder, and whether a plan describes it."""

    name: str
    folder: Path
    is_plan: bool


@dataclass(frozen=True)
class ReferenceSpeed:
    """Tokens/s of the reference file in its own session, and whether they were stable."""

    tokens_per_second: float
    stable: bool


def _speed(entry: Entry, reference: ReferenceSpeed) -> dict[str, Any]:
    """Return the speeds of a file: its ratio was paired with the reference in one session, so tokens/s are that ratio times
    the reference's own figure, and the rows of different sessions can be compared."""
    ratio = read_json(entry.folder / "speed.json")["models"][entry.name]["ratio"]
    median = ratio["median"]
    return {
        "tokens_per_second": None if median is None else median * reference.tokens_per_second,
        "ratio_to_reference": median,
        "ratio_min": ratio["min"],
        "ratio_max": ratio["max"],
        "speed_stable": ratio["stable"] and reference.stable,
    }


def reference_speed(folder: Path, name: str) -> ReferenceSpeed:
    """Return the speed of the reference file in its own session. Raises `UserError` when it has none."""
    try:
        held = read_json(folder / "speed.json")["models"][name]["generation_tokens_per_second"]
        return ReferenceSpeed(float(held["median"]), held["stable"])
    except (KeyError, TypeError, ValueError) as error:
        raise user_error(folder / "speed.json", f"lacks the speed of {name}: {error}", AGAIN) from None


def _scores(prefix: str, scores: dict[str, Any]) -> dict[str, Any]:
    kept = {
        "ppl": "ppl",
        "ppl_error": "ppl_error",
        "kl": "kl_mean",
        "kl_error": "kl_mean_error",
        "top1": "top1_agreement",
    }
    return {prefix + name: scores[key] for name, key in kept.items()}


def _plan_part(entry: Entry) -> dict[str, Any]:
    bits, plan = read_json(entry.folder / "bits.json"), read_json(entry.folder / "plan.json")
    summary = plan.get("summary", {})
    cost = summary.get("cost", {})
    return {
        "method": summary.get("method"),
        **{key: bits[key] for key in ("avg_bits", "avg_bits_layers", "target_avg_bits", "target_missed_by")},
        **_scores("", read_json(entry.folder / "perplexity.json")),
        "search_evaluations": cost.get("evaluations"),
        "search_block_forward_tokens": cost["block_forward_tokens"],
    }


def check_results(entries: Iterable[Entry], files: bool = True) -> None:
    """Raise `UserError` with every result that an entry's row is made of and that is not there; GGUF files only with `files`."""
    of_plans = PLAN_FILES if files else SIMULATED_FILES
    wanted = [entry.folder / name for entry in entries for name in (of_plans if entry.is_plan else BASELINE_FILES)]
    problems = [Problem(str(path), "does not exist", AGAIN) for path in wanted if not path.is_file()]
    if problems:
        raise UserError(problems)


def checked_row(entry: Entry, parameters: int, reference: ReferenceSpeed | None) -> dict[str, Any]:
    """Return the entry's row. Raises `UserError` when a file lacks a figure."""
    try:
        return row(entry, parameters, reference)
    except (KeyError, TypeError, AttributeError) as error:
        raise user_error(entry.folder, f"has a result that lacks a figure: {error}", AGAIN) from None


def row(entry: Entry, parameters: int, reference: ReferenceSpeed | None) -> dict[str, Any]:
    """Return the entry's row from the files in its folder; without a reference's speed the plan's alone, simulated."""
    if reference is None:
        return {**dict.fromkeys(COLUMNS), "name": entry.name, **_plan_part(entry)}
    size = (entry.folder / "model.gguf").stat().st_size
    common = {"name": entry.name, "file_bytes": size, "avg_bits_file": 8 * size / parameters}
    method = _plan_part(entry) if entry.is_plan else {"method": "llama.cpp"}
    file_name = "gguf_perplexity.json" if entry.is_plan else "perplexity.json"
    return {**common, **method, **_scores("file_", read_json(entry.folder / file_name)), **_speed(entry, reference)}


def _shown(value: Any, layout: str) -> str:
    width = layout.split(":")[1].strip("{}<>").split(".")[0].rstrip(",")
    return f"{'-':>{width}}" if value is None else layout.format(value)


def _cell(row: dict[str, Any], column: str, layout: str) -> str:
    """Return a cell of the readable table; a speed that was not stable is called so."""
    if column in ("tokens_per_second", "ratio_to_reference") and row.get("speed_stable") is False:
        return "unstable"
    return _shown(row.get(column), layout)


def _damage(row: dict[str, Any]) -> float:
    """Return the row's KL for sorting, of the file or where there is none of the plan; one that answers with NaN comes last."""
    held = row["file_kl"] if row.get("file_bytes") is not None else row["kl"]
    return float("inf") if held is None else held


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the readable table, sorted by the file's KL."""
    empty = dict.fromkeys(COLUMNS)
    widths = [int(layout.split(":")[1].strip("{}<>").split(".")[0].rstrip(",")) for _, _, layout in SHOWN]
    head = " ".join(
        f"{title:<{w}}" if i == 0 else f"{title:>{w}}"
        for i, ((_, title, _), w) in enumerate(zip(SHOWN, widths, strict=True))
    )
    ordered = sorted(rows, key=_damage)
    lines = [" ".join(_cell({**empty, **each}, column, layout) for column, _, layout in SHOWN) for each in ordered]
    return "\n".join((head, *lines, "", LEGEND)) + "\n"


def as_page(rows: Sequence[dict[str, Any]], more: str, figure: str, title: str) -> str:
    """Return a page of its own, with the table, `more` (HTML of further tables) and the figure (SVG text) inside."""
    ordered = sorted(rows, key=_damage)
    head = "".join(f"<th>{escape(name)}</th>" for _, name, _ in SHOWN)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(_cell(each, column, layout).strip())}</td>" for column, _, layout in SHOWN)
        + "</tr>\n"
        for each in ordered
    )
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
        "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
        "td,th{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #ccc}td:first-child,th:first-child{text-align:left}"
        "svg{max-width:100%;height:auto}.wide{overflow-x:auto}"
    )
    drawing = figure[figure.index("<svg") :]
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{style}</style>\n<h1>{escape(title)}</h1>\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'
        f"<p>{escape(LEGEND)}</p>\n{more}\n{drawing}</html>\n"
    )
