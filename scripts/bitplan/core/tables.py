"""The one writer of readable tables, as text and as Markdown; the page's template puts the same cells into HTML.

Plain Python: a table library would take longer to load than some commands take to run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MISSING = "-"


class Shown(Protocol):
    """What a table must know of a column: the key of its values in a row, its heading, and the layout of a value for `str.format`."""

    key: str
    heading: str
    format: str


@dataclass(frozen=True)
class Column:
    """A column of values other than metrics. `left`: flush left, as the first column of a table always is."""

    key: str
    heading: str
    format: str = "{}"
    left: bool = False


def cell(value: Any, layout: str, missing: str = MISSING) -> str:
    """Return a value as text; `missing` for None and NaN, and a string unchanged."""
    if value is None or value != value:
        return missing
    return value if isinstance(value, str) else layout.format(value)


def cells(row: Mapping[str, Any], columns: Iterable[Shown], missing: str = MISSING) -> list[str]:
    """Return a row's values as text, in the order of the columns."""
    return [cell(row.get(column.key), column.format, missing) for column in columns]


def text_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Shown], missing: str = MISSING) -> str:
    """Return the rows under the columns' headings, one line each, without a line end after the last.

    The first column and those that say `left` are flush left, the others flush right.
    """
    lines = [[column.heading for column in columns], *(cells(row, columns, missing) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    marks = ["<" if i == 0 or getattr(column, "left", False) else ">" for i, column in enumerate(columns)]
    layout = "  ".join(f"{{:{mark}{width}}}" for mark, width in zip(marks, widths, strict=True))
    return "\n".join(layout.format(*line).rstrip() for line in lines)


def markdown_row(values: Iterable[str]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(values)} |"


def markdown_head(headings: Sequence[str]) -> str:
    """Return the headings of a Markdown table and the line below them."""
    return f"{markdown_row(headings)}\n{markdown_row(['---'] * len(headings))}"
