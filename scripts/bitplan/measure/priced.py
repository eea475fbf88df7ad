"""Which figure stands for a candidate's KL: what was measured; else its price, corrected by the layer's measured candidates if there are any.

All prices of a layer come from the same gradients, so that they are off by much the same factor: the geometric mean of KL / price over the layer's
measured candidates.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bitplan.measure.kld import mean_and_error

Row = Mapping[str, Any]
MEASURED, PRICED, CORRECTED = "measured", "priced", "corrected"
# Of a layer that no token of the text has reached: what it does cannot be known from this text.
UNREACHED = "unreached"


def with_price(row: Row) -> dict[str, Any]:
    """Return a row with the mean of its windows' prices and the standard error of that; None for both where it was not priced.

    A layer that no token reached has the price 0.
    """
    by_window = row["price_by_window"]
    if by_window is None:
        return {**row, "price": None, "price_se": None}
    price, error = mean_and_error(by_window) if by_window else (0.0, None)
    return {**row, "price": price, "price_se": error}


def with_prices(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of some layers with `kld` taken from the price where it was not measured; `kld_from` says which is which."""
    factors = _factors(rows)
    return [_with_kld(row, factors.get(row["layer"])) for row in rows]


def _with_kld(row: Row, factor: float | None) -> dict[str, Any]:
    if row["kld"] is not None or row["price"] is None:
        return dict(row)
    error = None if row["price_se"] is None else row["price_se"] * (factor or 1.0)
    source = UNREACHED if row["price_by_window"] == [] else PRICED if factor is None else CORRECTED
    return {**row, "kld": row["price"] * (factor or 1.0), "kld_se": error, "kld_from": source}


def _factors(rows: Sequence[Row]) -> dict[str, float]:
    """Return by layer the geometric mean of KL / price of what was measured and has both above 0."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row["kld_from"] == MEASURED and row["price"] and row["kld"] > 0:
            ratios.setdefault(row["layer"], []).append(math.log(row["kld"] / row["price"]))
    return {layer: math.exp(sum(logs) / len(logs)) for layer, logs in ratios.items()}
