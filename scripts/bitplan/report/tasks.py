"""The lm-eval tasks in the comparison: a table of their own, since their figures are of another kind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.files import read_json
from bitplan.core.tables import Column
from bitplan.report.results import Entry
from bitplan.report.tables import Table

FULL_PRECISION = "full precision"
NOTE = "lm-eval's figures of plans with their activation formats, in torch. Word and byte perplexity are per word and byte of a document."


def _figures(path: Path) -> dict[str, float | None]:
    """Return {"task metric": value} of a tasks.json; None for a figure that is no finite number."""
    tasks = read_json(path).get("tasks")
    if not isinstance(tasks, dict) or not all(isinstance(row, dict) for row in tasks.values()):
        raise user_error("REPORT-NO-TASKS", path, "has no tasks", "Create it with scripts/eval_with_lm_eval.py")
    return {
        f"{task} {metric}": value
        for task, row in tasks.items()
        for metric, value in row.items()
        if (value is None or isinstance(value, float)) and metric != "documents" and not metric.endswith("_stderr")
    }


def task_rows(model: Path, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return a row for the full-precision model and one for every plan: its name, and its figure of every task's metric."""
    rows = [{"name": FULL_PRECISION, **_figures(model)}]
    return rows + [{"name": e.name, **_figures(e.folder / "tasks.json")} for e in entries if e.is_plan]


def task_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of the tasks, in the order of the full-precision model's figures; none without rows."""
    return [name for name in (rows[0] if rows else {}) if name != "name"]


def tasks_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the table of the tasks; None without rows."""
    columns = (Column("name", "plan"), *(Column(name, name, "{:.4f}") for name in task_columns(rows)))
    return Table("lm-eval tasks", columns, rows, NOTE) if rows else None
