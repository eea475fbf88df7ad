"""A study's cells as a table and as a figure: KL against what was varied."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitplan.core.figures import svg_axes
from bitplan.core.files import read_json
from bitplan.core.tables import Column
from bitplan.report.metrics import BY_KEY, METRICS, legend_of
from bitplan.report.results import value_of
from bitplan.report.tables import Table

SIZE = "avg_bits_layers"
CELL_METRICS = (
    BY_KEY[SIZE],
    BY_KEY["avg_bits"],
    *(metric for metric in METRICS if metric.source.startswith("scores.")),
)
FIGURES = tuple(metric.key for metric in CELL_METRICS)
HEADINGS = {"kl_error": "+-"}
SHOWN = tuple(
    replace(metric, heading=HEADINGS.get(metric.key, metric.heading))
    for metric in CELL_METRICS
    if metric.heading or metric.key in HEADINGS
)
ALSO = "also"


def cell_row(folder: Path, name: str, varied: Mapping[str, str]) -> dict[str, Any]:
    """Return a cell's row: its name, what was varied, and its figures. Raises `UserError` where a result is missing."""
    results = {"bits": read_json(folder / "bits.json"), "scores": read_json(folder / "perplexity.json")}
    return {"cell": name, **varied, **{metric.key: value_of(results, metric) for metric in CELL_METRICS}}


def columns_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns of a study's table: the cell, every varied setting, the figures."""
    varied = dict.fromkeys(key for row in rows for key in row if key not in ("cell", *FIGURES))
    return ("cell", *varied, *FIGURES)


def study_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the readable table, by rising KL."""
    ordered = sorted(rows, key=lambda row: float("inf") if row["kl"] is None else row["kl"])
    return Table("", (Column("cell", "cell"), *SHOWN), ordered, legend_of(SHOWN))


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
    lines = lines_of(rows, along)
    words = any(isinstance(x, str) for points in lines.values() for x, _, _ in points)
    label = BY_KEY[along].axis if along in BY_KEY else along.replace("_", " ")
    with svg_axes(path, title, label, BY_KEY["kl"].axis) as axes:
        for name, points in lines.items():
            x, y, errors = zip(*points, strict=True)
            x = list(map(str, x)) if words else x
            bars = [min(error, 0.9 * kl) for error, kl in zip(errors, y, strict=True)]
            axes.errorbar(x, y, yerr=bars, fmt="o" if words else "o-", label=name)
        axes.set_yscale("log")
