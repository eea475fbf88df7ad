"""The long steps of a model with their times, from the benchmarks that the workflow writes."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from bitplan.core.tables import Column
from bitplan.report.benchmarks import read_benchmark
from bitplan.report.tables import Row, Table

FOLDER = "benchmarks"
COLUMNS = (
    Column("step", "step"),
    Column("seconds", "seconds", "{:.1f}"),
    Column("processor_seconds", "processor seconds", "{:.1f}"),
    Column("megabytes", "peak MB", "{:,.0f}"),
)
NOTE = (
    "Long steps, by time, as they were last run on this machine: wall-clock and processor seconds, and the largest resident memory. "
    "Other work on the machine makes wall-clock times longer. results/.../benchmarks/ has the files."
)
# Parts of the names of steps that are not a plan's.
SHARED = ("", "sensitivity")


def step_rows(folder: Path, plans: Iterable[str]) -> Iterator[Row]:
    """Yield a row for each benchmark in a folder, but for those of other plans than some; nothing without the folder."""
    wanted = {*SHARED, *plans}
    for path in sorted(folder.glob("*.tsv")):
        measured = read_benchmark(path) if path.stem.rpartition(".")[0] in wanted else None
        if measured:
            yield {
                "step": path.stem,
                "seconds": measured.seconds,
                "processor_seconds": measured.processor_seconds,
                "megabytes": None if measured.peak_bytes is None else measured.peak_bytes / 1e6,
            }


def steps_table(results: Path, plans: Iterable[str]) -> Table | None:
    """Return the table of the steps of a model's results, the longest first; None without any."""
    rows = sorted(step_rows(results / FOLDER, plans), key=lambda row: -(row["seconds"] or 0.0))
    return Table("Steps and their times", COLUMNS, rows, NOTE) if rows else None
