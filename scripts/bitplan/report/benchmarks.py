"""What Snakemake's benchmark files say of a step: `results/{model}/benchmarks/*.tsv`."""

from dataclasses import dataclass
from pathlib import Path

from bitplan.core.files import read_table

MIB = 2**20


@dataclass(frozen=True)
class Benchmark:
    """A step as it was last run: wall-clock seconds, processor seconds, and peak resident memory in bytes; None for what Snakemake could not
    measure."""

    seconds: float | None
    processor_seconds: float | None
    peak_bytes: float | None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def read_benchmark(path: Path) -> Benchmark | None:
    """Return the last row of a benchmark file; None for a file without rows."""
    rows = read_table(path)
    if not rows:
        return None
    seconds, processor, mebibytes = (_number(rows[-1].get(key)) for key in ("s", "cpu_time", "max_rss"))
    return Benchmark(seconds, processor, None if mebibytes is None else MIB * mebibytes)
