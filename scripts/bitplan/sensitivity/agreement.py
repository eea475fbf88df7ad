"""How well cheaper figures order layers and formats as measured KL does: Kendall's tau (tau-b) of each column of a sensitivity table."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitplan.core.files import read_table
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.table import FORMATS
from bitplan.sensitivity.fitted import predicted
from bitplan.sensitivity.table import figure_of

ALL = "all"
METRICS = ("alpha", "mse", "relative_mse", "weighted_error", "fisher", "price")
# Rows of these have KL and nothing that could agree with it.
EMBEDDING_CATEGORIES = ("embedding", "lm_head")
# Fewer pairs than these order nothing.
FEWEST = 3
Row = Mapping[str, Any]


def read_rows(table: Path) -> list[dict[str, Any]]:
    """Return the rows of a sensitivity table, figures as numbers by `figure_of`, None where there is none. Raises `UserError`."""
    rows = read_table(table, ("layer", "format", "inputs", "kld", "kld_from"))
    return [{**row, **{name: _figure(row, name) for name in (*METRICS, "kld")}} for row in rows]


def _figure(row: Row, name: str) -> float | None:
    value = figure_of(row.get(name), row.get("tokens"))
    return None if math.isnan(value) else value


def kendall(rows: Sequence[Row], value: Callable[[Row], float | None]) -> float | None:
    """Return tau of a value against KL over the rows that have both; None where there are too few, or one of them never changes."""
    from scipy.stats import kendalltau

    pairs = [(value(row), row["kld"]) for row in rows]
    known = [pair for pair in pairs if None not in pair]
    if len(known) < FEWEST:
        return None
    tau = kendalltau(*zip(*known, strict=True)).statistic
    return None if math.isnan(tau) else float(tau)


def _fits(rows: Sequence[Row]) -> dict[str, Callable[[Row], float | None]]:
    """Return, where all of a palette was measured, what fits through one and through two of a layer's formats would have said of the others."""
    by_layer: dict[str, list[Row]] = {}
    for row in rows:
        by_layer.setdefault(row["layer"], []).append(row)
    for own in by_layer.values():
        own.sort(key=lambda row: FORMATS[row["format"]].bits_per_value())

    def fitted(places: Callable[[int], set[int]]) -> Callable[[Row], float | None]:
        """Return what a fit through the formats at some `places` of a layer says of a row; None for a row that it goes through."""

        def value(row: Row) -> float | None:
            own = by_layer[row["layer"]]
            anchors = [own[place] for place in sorted(places(len(own)))]
            return None if row["format"] in {each["format"] for each in anchors} else predicted(row, anchors)

        return value

    return {
        "fitted (1 anchor)": fitted(lambda count: {(count - 1) // 2}),
        "fitted (2 anchors)": fitted(lambda count: {0, count - 1}),
    }


def agreement(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Return {metric: {format: tau across the layers, "all": tau across all rows}} against the measured KL of weight formats.

    Nothing where none is measured.
    """
    of_layers = [row for row in rows if row.get("category") not in EMBEDDING_CATEGORIES]
    measured = [row for row in of_layers if row["kld_from"] == "measured" and row["inputs"] == UNQUANTIZED]
    if not measured:
        return {}
    formats = list(dict.fromkeys(row["format"] for row in measured))
    values: dict[str, Callable[[Row], float | None]] = {name: lambda row, name=name: row.get(name) for name in METRICS}
    if len(formats) > 2:
        values |= _fits(measured)
    groups = {name: [row for row in measured if row["format"] == name] for name in formats}
    return {
        label: {name: kendall(held, value) for name, held in {**groups, ALL: measured}.items()}
        for label, value in values.items()
    }


def agreement_lines(taus: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Return a line for each metric, its tau by format; none without taus."""
    return [
        f"tau against KL of {label}: " + ", ".join(f"{name} {tau:.2f}" for name, tau in row.items() if tau is not None)
        for label, row in taus.items()
        if any(tau is not None for tau in row.values())
    ]
