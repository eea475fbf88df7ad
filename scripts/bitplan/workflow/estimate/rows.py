"""From work and rates to an estimate: seconds, memory and disk of every step, and of the run."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bitplan.core.tables import Column, text_table
from bitplan.workflow.estimate.case import Step
from bitplan.workflow.estimate.rates import Rates

MB, GB = 1e6, 1e9
# Rules whose steps wait for one of the stage before, as patterns.
STAGES = (
    *(
        "model",
        "layer_stats",
        "sensitivity(_shard)?",
        "(optimal|genetic|adaptive|random|sparsegpt)_plan",
        "rounded_(genetic_)?plan",
    ),
    *("plan_(?!perplexity|runtime|speed|card).*", "plan_(runtime_)?perplexity", "comparison"),
)
COLUMNS = (
    Column("step", "step"),
    Column("jobs", "jobs"),
    Column("each", "each"),
    Column("total", "in all"),
    Column("memory_gb", "memory GB", "{:.1f}"),
    Column("disk_mb", "disk MB", "{:,.0f}"),
)


def duration(seconds: float) -> str:
    """Return a duration in words: `8 s`, `12 min`, `3.5 h`, `4.2 days`."""
    for size, name, layout in ((86400.0, "days", "{:.1f}"), (3600.0, "h", "{:.1f}"), (60.0, "min", "{:.0f}")):
        if seconds >= 2 * size:
            return f"{layout.format(seconds / size)} {name}"
    return f"{seconds:.0f} s"


def span(least: float, most: float) -> str:
    """Return a duration that may be longer in words: `8 s`, `8 to 45 s`."""
    low, high = duration(least), duration(most)
    return low if low == high else f"{low.removesuffix(f' {high.split()[-1]}')} to {high}"


def seconds_of(work: Mapping[str, float], rates: Rates) -> float:
    """Return the processor seconds of some work."""
    return sum(amount * rates.of(unit) for unit, amount in work.items())


def rows_of(steps: Iterable[Step], rates: Rates) -> list[dict[str, Any]]:
    """Return a row for each rule: jobs, seconds of all, and how many more they may take, memory of the largest in bytes, disk of all in bytes."""
    rows: dict[str, dict[str, Any]] = {}
    for step in steps:
        empty = {"jobs": 0, "seconds": 0.0, "perhaps": 0.0, "memory": 0.0, "disk": 0.0}
        row = rows.setdefault(step.rule, {"rule": step.rule, **empty, "alone": step.alone})
        row["jobs"] += step.jobs
        row["seconds"] += step.jobs * seconds_of(step.work, rates)
        row["perhaps"] += step.jobs * min(step.at_most, seconds_of(step.perhaps, rates))
        row["memory"] = max(row["memory"], rates.memory_of(step.work) + step.held)
        row["disk"] += step.jobs * step.disk
    return list(rows.values())


def _path(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of the longest chain of steps that wait for each other: one step of each stage, the one that takes longest."""
    return sum(
        max(
            (row["seconds"] / row["jobs"] for row in rows if not row["alone"] and re.fullmatch(stage, row["rule"])),
            default=0.0,
        )
        for stage in STAGES
    )


def total_of(rows: Sequence[Mapping[str, Any]], cores: int, threads: int = 1) -> dict[str, Any]:
    """Return the run's processor seconds, seconds on so many cores, largest memory, disk, and the step that takes most time.

    As many steps run side by side as there are cores for their threads, and none before those that it waits for; timings run alone.
    """
    alone = sum(row["seconds"] for row in rows if row["alone"])
    beside = sum(row["seconds"] for row in rows if not row["alone"])
    longest = max(rows, key=lambda row: row["seconds"] / row["jobs"])
    return {
        "processor_seconds": alone + beside,
        "seconds": alone + max(beside / max(1, cores), _path(rows) / threads),
        "cores": cores,
        "memory": max(row["memory"] for row in rows),
        "disk": sum(row["disk"] for row in rows),
        "longest": longest["rule"],
    }


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table for a terminal."""
    shown = (
        {
            "step": row["rule"].replace("_", " "),
            "jobs": row["jobs"],
            "each": span(row["seconds"] / row["jobs"], (row["seconds"] + row["perhaps"]) / row["jobs"]),
            "total": duration(row["seconds"]),
            "memory_gb": row["memory"] / GB,
            "disk_mb": row["disk"] / MB,
        }
        for row in rows
    )
    return text_table(shown, COLUMNS)


def line_of(name: str, total: Mapping[str, Any]) -> str:
    """Return the run's estimate in one line."""
    return (
        f"{name}: about {duration(total['seconds'])} on {total['cores']} cores ({duration(total['processor_seconds'])} of processor time,"
        f" most of it {total['longest'].replace('_', ' ')}), {total['memory'] / GB:.1f} GB of memory for the largest step,"
        f" {total['disk'] / GB:.2g} GB of disk"
    )
