"""What agrees with measured KL, as a table: Kendall's tau of each cheaper figure, for each format across the layers and for all rows."""

from collections.abc import Mapping
from pathlib import Path

from bitplan.core.errors import user_error
from bitplan.core.files import read_json
from bitplan.core.tables import Column
from bitplan.report.tables import Table

ALL = "all"
ORDER = ("alpha", "mse", "relative_mse", "weighted_error", "fisher", "fitted (1 anchor)", "fitted (2 anchors)")
NOTE = (
    "Kendall's tau against the KL that was measured with one layer alone in a format: 1 orders the layers as KL does, 0 by chance, -1 the "
    "other way round; all: over the formats too. A high alpha is to mean little damage, so its tau is to be below 0."
)
Taus = Mapping[str, Mapping[str, float | None]]


def read_agreement(path: Path) -> Taus:
    """Return {metric: {format: tau}} of an agreement.json; empty where nothing was measured. Raises `UserError` for another file."""
    taus = read_json(path).get("kendall_tau")
    fits = isinstance(taus, dict) and all(isinstance(row, dict) for row in taus.values())
    numbers = fits and all(
        value is None or type(value) in (int, float) for row in taus.values() for value in row.values()
    )
    if not numbers:
        raise user_error(
            "REPORT-NO-AGREEMENT",
            path,
            "has no rank correlations (tau) by metric and format",
            "Create it again with scripts/sensitivity.py --report",
        )
    return taus


def agreement_table(taus: Taus) -> Table | None:
    """Return the table of taus: formats side by side, `all` last; a metric without any is left out. None without taus."""
    formats = [*sorted({name for row in taus.values() for name in row} - {ALL}), ALL]
    rank = {name: i for i, name in enumerate(ORDER)}
    names = sorted(taus, key=lambda name: (rank.get(name, len(rank)), name))
    rows = [{"figure": name, **taus[name]} for name in names if any(value is not None for value in taus[name].values())]
    columns = (Column("figure", "tau against KL"), *(Column(name, name, "{:.3f}") for name in formats))
    return Table("What agrees with measured KL", columns, rows, NOTE, missing="") if taus else None
