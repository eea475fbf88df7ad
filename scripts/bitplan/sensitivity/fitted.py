"""KL of formats that were not measured, from those of the layer's own that were: KL[l, f] = a_l err[l, f]^p_l.

err is the row's importance-weighted error, or its mse where activations are quantized too, which no error of weights sees. Through one
anchor p = 1 (KL is quadratic in a small change, and err is a square); through two, p is the slope between them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bitplan.formats.facts import UNQUANTIZED

SLOPES = (0.5, 2.0)
Row = Mapping[str, Any]


def error_column(row: Row) -> str:
    """Return the column of a row that its KL is fitted to."""
    return "weighted_error" if row["inputs"] == UNQUANTIZED else "mse"


def fit(errors: Sequence[float], klds: Sequence[float]) -> tuple[float, float]:
    """Return ln a and p of KL = a err^p through one anchor (p = 1), or nearest to several: p between 0.5 and 2, so that it rises.

    Errors and KLs are above 0.
    """
    x, y = [math.log(error) for error in errors], [math.log(kld) for kld in klds]
    spread = max(x) - min(x)
    slope = (y[x.index(max(x))] - y[x.index(min(x))]) / spread if spread > 0 else 1.0
    power = min(max(slope, SLOPES[0]), SLOPES[1])
    return sum(b - power * a for a, b in zip(x, y, strict=True)) / len(x), power


def predicted(row: Row, anchors: Sequence[Row]) -> float | None:
    """Return a row's KL by the fit to the layer's measured rows; None where these or the row itself have no figures.

    A row without error has no KL either, nor one that leaves the layer at 16 bits. Anchors of no error, or of no KL beside others that
    have one, say nothing of the scale, and are left out; where every anchor with an error has no KL, no token that is scored depends on
    the layer, and no format has any.
    """
    column = error_column(row)
    error = row[column]
    if error == 0 or (row["format"], row["inputs"]) == (UNQUANTIZED, UNQUANTIZED):
        return 0.0
    known = [(each[column], each["kld"]) for each in anchors if _usable(each[column]) and _usable(each["kld"])]
    if not _usable(error):
        return None
    if not known:
        return 0.0 if any(_usable(each[column]) and each["kld"] == 0 for each in anchors) else None
    scale, power = fit(*zip(*known, strict=True))
    return math.exp(scale + power * math.log(error))


def _usable(value: float | None) -> bool:
    return value is not None and value > 0


def with_fitted(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of some layers with `kld` fitted where it was not measured; `kld_from` says which is which.

    Only a layer's anchors with unchanged inputs are fitted to. Rows of layers without any stay as they are.
    """
    anchors: dict[str, list[Row]] = {}
    for row in rows:
        if row["kld_from"] == "measured" and row["inputs"] == UNQUANTIZED:
            anchors.setdefault(row["layer"], []).append(row)
    made = []
    for row in rows:
        value = predicted(row, anchors.get(row["layer"], ())) if row["kld"] is None else None
        made.append(dict(row) if value is None else {**row, "kld": value, "kld_from": "fitted"})
    return made
