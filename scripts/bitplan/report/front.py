"""Which plans are worth their size: the front of KL against size, and what it says beside llama.cpp's recipes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bitplan.core.intervals import half_width
from bitplan.report.results import BASELINE_METHOD
from bitplan.report.tables import Row

# Below this a file is as good as the reference.
LOSSLESS_KL = 1e-6
# Files whose sizes differ by less than this share are of the same size: their metadata alone differ by some hundred bytes.
SAME_SIZE = 0.001
# An error bar as a share of its KL, at most: a logarithmic axis has no 0.
LARGEST_ERROR = 0.9
# Beside the points an axis has a tenth of their KL.
ROOM = 1.1
# What a row that is the best of at most its size has in the column that names the best.
ITSELF = "this one"


@dataclass(frozen=True)
class Axes:
    """The metrics of size and KL that rows are compared by, by key."""

    size: str
    kl: str

    @property
    def error(self) -> str:
        """The standard error of the KL."""
        return f"{self.kl}_error"

    def has(self, row: Row) -> bool:
        """Return whether a row has both: a file that answers with NaN has no KL."""
        return row.get(self.size) is not None and row.get(self.kl) is not None


OF_FILES, OF_PLANS = Axes("avg_bits_file", "file_kl"), Axes("avg_bits", "kl")


def axes_of(rows: Iterable[Row]) -> Axes:
    """Return the axes of some rows: those of the files, or those of the simulated plans where no row has a file."""
    return OF_FILES if any(row.get(OF_FILES.size) is not None for row in rows) else OF_PLANS


def _fits(row: Row, limit: Row, axes: Axes) -> bool:
    """Return whether a row is no larger than another, to `SAME_SIZE`."""
    return row[axes.size] <= limit[axes.size] * (1 + SAME_SIZE)


def _beats(row: Row, other: Row, axes: Axes) -> bool:
    """Return whether a row is no larger than another and has a lower KL, or the same KL and is smaller by more than `SAME_SIZE`."""
    same_kl = row[axes.kl] == other[axes.kl]
    return _fits(row, other, axes) and (row[axes.kl] < other[axes.kl] or (same_kl and not _fits(other, row, axes)))


def front_of(rows: Sequence[Row], axes: Axes) -> list[Row]:
    """Return the rows that no row of the front beats, by rising size: each other row is beaten by one of them.

    "Of the same size" is not transitive: in a row of plans, each a little larger and better than the one before, the largest is not of
    the first one's size. So a row is compared, by rising KL, with those alone that are on the front by then.
    """
    front: list[Row] = []
    for row in sorted(filter(axes.has, rows), key=lambda row: (row[axes.kl], row[axes.size])):
        if not any(_beats(better, row, axes) for better in front):
            front.append(row)
    return sorted(front, key=lambda row: row[axes.size])


def dominated(rows: Sequence[Row], axes: Axes) -> set[str]:
    """Return the names of the rows with size and KL that are not on the front."""
    front = {row["name"] for row in front_of(rows, axes)}
    return {row["name"] for row in rows if axes.has(row) and row["name"] not in front}


def with_best(rows: Sequence[Row], axes: Axes) -> list[dict[str, Any]]:
    """Return the rows with `best_at_size`: the row of the front of at most their size, to `SAME_SIZE`, that has the lowest KL; itself
    for a row of the front, None for one without size or KL."""
    front = front_of(rows, axes)
    names = {row["name"] for row in front}

    def best(row: Row) -> str | None:
        if row["name"] in names or not axes.has(row):
            return ITSELF if row["name"] in names else None
        small = [other for other in front if _fits(other, row, axes)]
        return min(small, key=lambda other: (other[axes.kl], other[axes.size]))["name"]

    return [{**row, "best_at_size": best(row)} for row in rows]


@dataclass(frozen=True)
class Point:
    """Where a row is drawn: `kl` on a logarithmic axis, with an error bar of `error`, half its 95 % interval, that ends above 0, and a label for it.

    A point `below` has a KL below 1e-6, which would take the room of the others: it stands outside the axis, at its lower edge.
    """

    name: str
    method: str
    size: float
    kl: float
    error: float
    label: str
    dominated: bool
    below: bool


def points_of(rows: Sequence[Row], axes: Axes) -> list[Point]:
    """Return the points of the rows that have a size and a KL, by rising size; the label of one below the axis says its KL."""
    known, hidden = sorted(filter(axes.has, rows), key=lambda row: row[axes.size]), dominated(rows, axes)
    return [_point(row, axes, row["name"] in hidden) for row in known]


def _point(row: Row, axes: Axes, hidden: bool) -> Point:
    kl = row[axes.kl]
    below = kl <= LOSSLESS_KL
    label = f"{row['name']}: KL {kl:.1g}" if below else row["name"]
    error = min(half_width(row.get(axes.error) or 0.0), LARGEST_ERROR * kl)
    return Point(row["name"], row["method"] or "", row[axes.size], kl, error, label, hidden, below)


def ends_of_axis(kl: Iterable[float]) -> tuple[float, float]:
    """Return where a logarithmic axis of some KL begins and ends: at 1, 2, 3 or 5 times a power of ten, with a tenth of room."""
    values = [*kl] or [LOSSLESS_KL, 1.0]
    marks = [float(f"{step}e{power}") for power in range(-12, 4) for step in (1, 2, 3, 5)]
    low, high = min(values) / ROOM, max(values) * ROOM
    return max((mark for mark in marks if mark <= low), default=low), min(
        (mark for mark in marks if mark >= high), default=high
    )


def headlines(rows: Sequence[Row], axes: Axes) -> list[str]:
    """Return a sentence for each recipe but the reference (the first): the best KL of a plan of at most its size, to `SAME_SIZE`, and
    its own."""
    known = [row for row in rows if axes.has(row)]
    recipes = [row for row in known if row["method"] == BASELINE_METHOD][1:]
    plans = [row for row in known if row["method"] != BASELINE_METHOD]
    return [_headline(recipe, plans, axes) for recipe in recipes]


def _next_better(recipe: Row, plans: Sequence[Row], axes: Axes) -> str:
    better = [row for row in plans if row[axes.kl] < recipe[axes.kl]]
    if not better:
        return ""
    first = min(better, key=lambda row: row[axes.size])
    times = first[axes.size] / recipe[axes.size]
    return (
        f"; {first['name']} has KL {first[axes.kl]:.2g} instead of {recipe[axes.kl]:.2g} at {times:.3f} times its size"
    )


def _headline(recipe: Row, plans: Sequence[Row], axes: Axes) -> str:
    small = [row for row in plans if _fits(row, recipe, axes)]
    if not small:
        return f"No plan is as small as {recipe['name']}{_next_better(recipe, plans, axes)}."
    best = min(small, key=lambda row: row[axes.kl])
    ours, theirs = best[axes.kl], recipe[axes.kl]
    apart = abs(ours - theirs) > math.hypot(*(row.get(axes.error) or 0.0 for row in (best, recipe)))
    doubt = "" if apart else " (within the standard errors)"
    if ours < theirs:
        return f"At {recipe['name']}'s size: KL {ours:.2g} instead of {theirs:.2g}{doubt}, with {best['name']}."
    return f"At {recipe['name']}'s size no plan has a lower KL than its {theirs:.2g}; {best['name']} has {ours:.2g}{doubt}."


def summary_lines(rows: Sequence[Row], most: int = 8) -> list[str]:
    """Return what a run ends with: the headlines, and the rows on the front by rising size, each with its size and KL; at most
    `most` of either."""
    axes = axes_of(rows)
    front = front_of(rows, axes)
    width = max((len(row["name"]) for row in front), default=0)
    lines = [f"  {row['name']:<{width}}  {row[axes.size]:6.3f} bits  KL {row[axes.kl]:.6f}" for row in front[-most:]]
    told = f"Best at their size (sizes within {100 * SAME_SIZE:g} % are the same):"
    return [*headlines(rows, axes)[:most], told, *lines]
