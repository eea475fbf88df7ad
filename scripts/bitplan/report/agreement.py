"""What agrees with measured KL, as a table: Kendall's tau of each cheaper figure, for each format across the layers and for all rows."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from bitplan.core.errors import user_error
from bitplan.core.files import read_json

ALL = "all"
ORDER = ("alpha", "mse", "relative_mse", "weighted_error", "fisher", "fitted (1 anchor)", "fitted (2 anchors)")
NOTE = (
    "Kendall's tau against the KL that was measured with one layer alone in a format: 1 orders the layers as KL does, 0 by chance, -1 the "
    "other way round; all: over the formats too. A high alpha is to mean little damage, so its tau is to be below 0."
)
Taus = Mapping[str, Mapping[str, float | None]]


def read_agreement(path: Path) -> Taus:
    """Return {metric: {format: tau}} of an agreement.json; empty where nothing was measured. Raises `UserError` for another file."""
    held = read_json(path).get("kendall_tau")
    fits = isinstance(held, dict) and all(isinstance(row, dict) for row in held.values())
    numbers = fits and all(
        value is None or type(value) in (int, float) for row in held.values() for value in row.values()
    )
    if not numbers:
        raise user_error(
            "REPORT-NO-AGREEMENT",
            path,
            "has no rank correlations (tau) by metric and format",
            "Create it again with scripts/sensitivity.py --report",
        )
    return held


def _ordered(taus: Taus) -> tuple[list[str], dict[str, list[float | None]]]:
    """Return the formats, `all` last, and by metric the taus in their order; a metric without any is left out."""
    formats = [*sorted({name for row in taus.values() for name in row} - {ALL}), ALL]
    rank = {name: i for i, name in enumerate(ORDER)}
    names = sorted(taus, key=lambda name: (rank.get(name, len(rank)), name))
    rows = {name: [taus[name].get(form) for form in formats] for name in names}
    return formats, {name: row for name, row in rows.items() if any(value is not None for value in row)}


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def agreement_text(taus: Taus) -> str:
    """Return the readable table; nothing without taus."""
    if not taus:
        return ""
    formats, rows = _ordered(taus)
    wide = max(map(len, (*rows, "tau against KL")))
    lines = [f"{'tau against KL':<{wide}}  " + "  ".join(f"{name:>8}" for name in formats)]
    lines += [f"{name:<{wide}}  " + "  ".join(f"{_shown(value):>8}" for value in row) for name, row in rows.items()]
    return "\n" + "\n".join(line.rstrip() for line in lines) + "\n\n" + NOTE + "\n"


def agreement_html(taus: Taus) -> str:
    """Return the table for the page; nothing without taus."""
    if not taus:
        return ""
    formats, rows = _ordered(taus)
    head = "".join(f"<th>{escape(name)}</th>" for name in ("figure", *formats))
    body = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{_shown(value)}</td>" for value in row) + "</tr>"
        for name, row in rows.items()
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>What agrees with measured KL</h2><div class="wide">{table}</div><p>{escape(NOTE)}</p>'
