"""Which figure stands for a candidate's KL: what was measured, else its price.

A measured candidate says nothing of the others of its layer: what a price is off by beyond its noise is the candidate's own (KL is not quadratic in
large changes), and correcting a layer's prices by what was measured in another format made their order worse (docs/sensitivity.md).
"""

from collections.abc import Mapping
from typing import Any

from bitplan.sensitivity.kld import mean_and_error

Row = Mapping[str, Any]
PRICED = "priced"
# Of a layer that no token of the text has reached: what it does cannot be known from this text.
UNREACHED = "unreached"


def with_price(row: Row) -> dict[str, Any]:
    """Return a row with the mean of its windows' prices and the standard error of that; None for both where it was not priced.

    Where KL was not measured, the price stands for it: `kld_from` says so. A layer that no token reached (its `tokens` are 0) has no price, as
    it has no other figure, and `kld_from` says that.
    """
    by_window = row["price_by_window"]
    if by_window is None:
        return {**row, "price": None, "price_se": None}
    reached = bool(by_window) and row.get("tokens") != 0
    price, error = mean_and_error(by_window) if reached else (None, None)
    made = {**row, "price": price, "price_se": error}
    source = PRICED if reached else UNREACHED
    return made if row["kld"] is not None else {**made, "kld": price, "kld_se": error, "kld_from": source}
