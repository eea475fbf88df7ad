"""The comparison of all plans and baselines of a model: one row each."""

from collections.abc import Sequence
from typing import Any

from bitplan.core.tables import Column
from bitplan.report.metrics import METRICS, SHOWN, legend_of
from bitplan.report.tables import Row, Table

NAME = Column("name", "plan")
ROUNDING = Column("rounding", "rounding")
BEST = Column("best_at_size", "best at its size")
COLUMNS = (
    "name",
    "method",
    ROUNDING.key,
    "rounded_to_nearest",
    "few_tokens",
    BEST.key,
    *(metric.key for metric in METRICS),
)
SPEEDS = ("tokens_per_second", "ratio_to_reference")
NOTE = (
    "Without \"file\": the plan with its activation formats, simulated. file ...: the GGUF in llama.cpp, which keeps activations "
    "whole. unstable: the speed varied too much between rounds; min and max are its range. best at its size: the row of at most this size with the lowest KL; sizes within 0.1 % are the same. rounding: how weights are rounded (docs/rounding.md)."
)  # fmt: skip


def damage(row: Row) -> float:
    """Return the row's KL for sorting, of the file or where there is none of the plan; one that answers with NaN comes last."""
    kl = row["file_kl"] if row.get("file_bytes") is not None else row["kl"]
    return float("inf") if kl is None else kl


def _shown(row: Row) -> dict[str, Any]:
    """Return a row as tables show it: a speed that was not stable is called so."""
    return {**row, **(dict.fromkeys(SPEEDS, "unstable") if row.get("speed_stable") is False else {})}


NOTES = {
    "rounded_to_nearest": "layers are rounded to nearest; rounding/rounding.tsv says why.",
    "few_tokens": "layers are rounded on fewer tokens than columns: use more calibration windows.",
}


def rounding_notes(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each plan some of whose layers could not be rounded as its setting says, or on too few tokens."""
    return [f"{row['name']}: {row[key]} {note}" for row in rows for key, note in NOTES.items() if row.get(key)]


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return the comparison, by rising KL, with the metrics that some row has."""
    metrics = tuple(m for m in SHOWN if any(row.get(m.key) is not None for row in rows))
    ordered = [_shown(row) for row in sorted(rows, key=damage)]
    words = [column for column in (BEST, ROUNDING) if any(row.get(column.key) is not None for row in rows)]
    shown = (NAME, *words, *metrics)
    return Table("", shown, ordered, " ".join((legend_of(metrics), NOTE, *rounding_notes(rows))))


def comparison_json(rows: Sequence[Row], in_runtimes: Sequence[Row] = ()) -> dict[str, Any]:
    """Return the content of comparison.json: what the metrics are, the rows, and those of each plan in each runtime."""
    facts = ("key", "heading", "unit", "legend", "better")
    metrics = [{fact: getattr(m, fact) for fact in facts} for m in METRICS]
    return {"metrics": metrics, "rows": list(rows), "runtimes": list(in_runtimes)}
