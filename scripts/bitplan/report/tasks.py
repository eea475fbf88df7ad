"""The lm-eval tasks in the comparison: a table of their own, since their figures are of another kind."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.files import read_json
from bitplan.report.comparison import Entry

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


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def tasks_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the readable table of the tasks; nothing without rows."""
    columns = task_columns(rows)
    if not columns:
        return ""
    head = f"{'plan':<24} " + "  ".join(columns)
    lines = [
        f"{row['name']:<24} " + "  ".join(f"{_shown(row.get(column)):>{len(column)}}" for column in columns)
        for row in rows
    ]
    return "\n" + "\n".join((head, *lines, "", NOTE)) + "\n"


def tasks_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the tasks for the page; nothing without rows."""
    columns = task_columns(rows)
    if not columns:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("plan", *columns))
    body = "".join(
        f"<tr><td>{escape(row['name'])}</td>"
        + "".join(f"<td>{_shown(row.get(column))}</td>" for column in columns)
        + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>lm-eval tasks</h2><div class="wide">{table}</div><p>{escape(NOTE)}</p>'
