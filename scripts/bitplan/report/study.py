"""A study's cells as a table and as a figure: KL against what was varied."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitplan.core.files import read_json

SIZE = "avg_bits_layers"
FIGURES = (SIZE, "avg_bits", "kl", "kl_error", "ppl", "top1")
AXES = {SIZE: "average bits over the quantizable layers, as stored"}
ALSO = "also"


def cell_row(folder: Path, name: str, varied: Mapping[str, str]) -> dict[str, Any]:
    """Return a cell's row: its name, what was varied, and its figures. Raises `UserError` where a result is missing."""
    bits, scores = read_json(folder / "bits.json"), read_json(folder / "perplexity.json")
    figures = {
        SIZE: bits[SIZE],
        "avg_bits": bits["avg_bits"],
        "kl": scores["kl_mean"],
        "kl_error": scores["kl_mean_error"],
        "ppl": scores["ppl"],
        "top1": scores["top1_agreement"],
    }
    return {"cell": name, **varied, **figures}


def columns_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns of a study's table: the cell, every varied setting, the figures."""
    varied = dict.fromkeys(key for row in rows for key in row if key not in ("cell", *FIGURES))
    return ("cell", *varied, *FIGURES)


def study_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the readable table, by rising KL."""
    width = max(len(row["cell"]) for row in rows)
    lines = [f"{'cell':<{width}} {'layers':>8} {'bits':>8} {'KL':>10} {'+-':>9} {'PPL':>9} {'top-1':>7}"]
    for row in sorted(rows, key=lambda row: float("inf") if row["kl"] is None else row["kl"]):
        kl, error, ppl = (float("nan") if row[key] is None else row[key] for key in ("kl", "kl_error", "ppl"))
        lines.append(
            f"{row['cell']:<{width}} {row[SIZE]:>8.3f} {row['avg_bits']:>8.3f} {kl:>10.6f} {error:>9.6f} {ppl:>9.4f} {row['top1']:>7.4f}"
        )
    told = "layers: bits over the quantizable layers, bits: over all parameters, as stored. KL, PPL, top-1: on the evaluation text."
    return "\n".join((*lines, "", told)) + "\n"


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _series_of(row: Mapping[str, Any], along: str, varied: Sequence[str]) -> str:
    """Return which line of the figure a cell belongs to: what else was varied, or the name of a single cell without its number."""
    if row.get(ALSO):
        name, _, last = row[ALSO].rpartition("-")
        return name if name and _number(last) is not None else row[ALSO]
    others = [row[key] for key in varied if key != along and row.get(key) and _number(row[key]) is None]
    return ", ".join(others) or "cells"


def lines_of(rows: Sequence[Mapping[str, Any]], along: str) -> dict[str, list[tuple[Any, float, float]]]:
    """Return {series: [(x, KL, its standard error)]}, by rising x where it is a number; cells without a KL are left out."""
    varied = [key for key in columns_of(rows) if key not in ("cell", *FIGURES, ALSO)]
    found: dict[str, list[tuple[Any, float, float]]] = {}
    for row in rows:
        if row["kl"] is None:
            continue
        x = row[along] if along == SIZE else row.get(along) or row.get(ALSO)
        x = x if _number(x) is None else _number(x)
        found.setdefault(_series_of(row, along, varied), []).append((x, row["kl"], row["kl_error"] or 0.0))
    return {
        name: sorted(points, key=lambda point: (isinstance(point[0], str), point[0])) for name, points in found.items()
    }


def draw_study(rows: Sequence[Mapping[str, Any]], along: str, path: Path, title: str) -> None:
    """Write an SVG: KL with its standard error against `along`, a line for each of what else was varied; words stand side by side."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "bitplan", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    lines = lines_of(rows, along)
    words = any(isinstance(x, str) for points in lines.values() for x, _, _ in points)
    for name, points in lines.items():
        x, y, errors = zip(*points, strict=True)
        x = list(map(str, x)) if words else x
        bars = [min(error, 0.9 * kl) for error, kl in zip(errors, y, strict=True)]
        axes.errorbar(x, y, yerr=bars, fmt="o" if words else "o-", label=name, capsize=3, markersize=4, linewidth=1)
    axes.set(yscale="log", xlabel=AXES.get(along, along.replace("_", " ")), title=title)
    axes.set_ylabel("mean KL to full precision (nats per token)")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
