"""The tables of a report: the comparison, and what stands below it. Each is a value that text and page both show."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitplan.core.files import write_aside
from bitplan.core.tables import MISSING, Shown, text_table

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows under columns, with a title and a note that says what the figures are; `missing` stands for no value."""

    title: str
    columns: Sequence[Shown]
    rows: Sequence[Row]
    note: str
    missing: str = MISSING

    def text(self) -> str:
        """Return the table as text with its note."""
        return f"{text_table(self.rows, self.columns, self.missing)}\n\n{self.note}\n"


def texts(headlines: Iterable[str], tables: Iterable[Table]) -> str:
    """Return sentences and tables as text, one below the other."""
    said = "".join(f"{sentence}\n" for sentence in headlines)
    return "\n".join((*([said] if said else []), *(table.text() for table in tables)))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
