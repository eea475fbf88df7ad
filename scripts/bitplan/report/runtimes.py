"""The plans' files in their runtimes: one row for each plan and runtime, with the file's own figures where it was scored here."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.files import read_json
from bitplan.core.tables import Column
from bitplan.report.metrics import SCORES
from bitplan.report.results import AGAIN, RUNTIME, Entry
from bitplan.report.tables import Table

UNSCORED = "not scored here"
# What a file is judged by comes first.
OTHERS = tuple(metric for metric in SCORES if metric.heading and metric.key != "kl")
COLUMNS = (
    *(Column("name", "plan"), Column("runtime", "runtime", left=True)),
    *(Column("avg_bits_file", "bits", "{:.3f}"), Column("file_bytes", "bytes", "{:,}")),
    *(Column("differences", "changed", "{}"), Column("kl", "KL", "{:.6f}"), *OTHERS),
)
NOTE = (
    "bits: size of the file per parameter. changed: layers that are not stored as the plan has them, formats of inputs included. KL, PPL and top-1 are computed by the runtime itself from its file, on the evaluation text; "
    f"{UNSCORED}: its packages are not installed (docs/runtimes.md)."
)  # fmt: skip
Row = Mapping[str, Any]


def _scores(entry: Entry, runtime: str) -> dict[str, Any]:
    """Return the metrics of a file's perplexity.json. Raises `UserError` when it is missing or lacks one."""
    path = entry.folder / runtime / "perplexity.json"
    if not path.is_file():
        raise user_error("REPORT-NO-RESULT", path, "does not exist", AGAIN)
    held = read_json(path)
    absent = [metric.source for metric in SCORES if metric.source not in held]
    if absent:
        raise user_error("REPORT-NO-FIGURE", path, f"lacks {', '.join(absent)}", AGAIN)
    return {metric.key: held[metric.source] for metric in SCORES}


def runtime_rows(entries: Sequence[Entry], runtimes: Sequence[str], unscored: Collection[str]) -> list[dict[str, Any]]:
    """Return the row of each plan in each runtime; without figures for runtimes that are `unscored`."""
    rows = []
    for entry in (each for each in entries if each.is_plan):
        for runtime in runtimes:
            report = read_json(entry.folder / runtime / "report.json")
            facts = {key: report.get(key) for key in ("avg_bits_file", "file_bytes", "differences")}
            scores = {} if runtime in unscored else _scores(entry, runtime)
            rows.append({"name": entry.name, "runtime": runtime, "scored_here": bool(scores), **facts, **scores})
    return rows


def runtimes_table(rows: Sequence[Row]) -> Table | None:
    """Return the table of the files in their runtimes; None where the only runtime is the one of the comparison's own columns."""
    if {row["runtime"] for row in rows} <= {RUNTIME}:
        return None
    shown = [row if row["scored_here"] else {**row, "kl": UNSCORED} for row in rows]
    return Table("Files in their runtimes", COLUMNS, shown, NOTE)
