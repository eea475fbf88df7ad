"""The figure of the comparison: KL of each file against its size in bits per parameter."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitplan.core.colours import OCHRE, TEAL
from bitplan.core.figures import svg_axes
from bitplan.report.front import OF_FILES, Axes, Point, ends_of_axis, points_of
from bitplan.report.metrics import BY_KEY
from bitplan.report.tables import Row
from bitplan.search.registry import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Drawing

# The colour of each method.
COLOURS = {
    **{"llama.cpp": TEAL, "uniform": OCHRE},
    **{name: method.colour for name, method in METHODS.items()},
}
# More points than these have no room for names: those of a method are joined by a line instead.
MOST_NAMES = 16
# About the room that a name takes, in bits and as a ratio of KL.
NAME_BITS, NAME_RATIO = 2.0, 1.1
# Points of one size whose names would stand on each other: so far apart in bits, and as a ratio of KL.
SAME_BITS, NEAR_RATIO = 0.05, 1.15


def _draw_points(drawing: "Drawing", points: Sequence[Point]) -> None:
    mark = "o" if len(points) <= MOST_NAMES else "o-"
    for method in sorted({point.method for point in points}):
        some = [point for point in points if point.method == method]
        x, y, errors = ([getattr(point, key) for point in some] for key in ("size", "kl", "error"))
        drawing.errorbar(x, y, yerr=errors, fmt=mark, label=method, color=COLOURS.get(method))


def _has_neighbour(point: Point, points: Sequence[Point]) -> bool:
    """Return whether another point stands where this one's name would be written on its right, or the axes end there."""
    aside = [(other.size - point.size, other.kl / point.kl) for other in points]
    return max(bits for bits, _ in aside) == 0 or any(
        0 < bits < NAME_BITS and 1 / NAME_RATIO < ratio < NAME_RATIO for bits, ratio in aside
    )


def _rise(point: Point, points: Sequence[Point]) -> int:
    """Return how far above its point a name stands, in points: below it where another one of its size is just above."""
    same = [other.kl / point.kl for other in points if other is not point and abs(other.size - point.size) < SAME_BITS]
    return -9 if any(1 <= ratio < NEAR_RATIO for ratio in same) else 5


def _draw_below(drawing: "Drawing", points: Sequence[Point]) -> None:
    """Draw arrows at the lower edge of the axes for points below it."""
    edge = drawing.get_xaxis_transform()
    for point in points:
        colour = COLOURS.get(point.method)
        drawing.plot([point.size], [0.02], marker="v", color=colour, linestyle="none", transform=edge)
        beside = {"xycoords": edge, "textcoords": "offset points", "xytext": (-7, 0)}
        drawing.annotate(point.label, (point.size, 0.02), fontsize=8, ha="right", **beside)


def _draw_names(drawing: "Drawing", points: Sequence[Point]) -> None:
    for point in points if len(points) <= MOST_NAMES else ():
        side, shift = ("right", -7) if _has_neighbour(point, points) else ("left", 7)
        place = (point.size, point.kl)
        drawing.annotate(
            point.label, place, textcoords="offset points", xytext=(shift, _rise(point, points)), fontsize=8, ha=side
        )


def draw(rows: Sequence[Row], path: Path, title: str, axes: Axes = OF_FILES) -> None:
    """Write an SVG: a point for each plan and baseline with its 95 % interval, KL on a logarithmic axis.

    A file that answers with NaN has no point. The bytes depend on the rows alone.
    """
    every = points_of(rows, axes)
    points = [point for point in every if not point.below]
    with svg_axes(path, title, BY_KEY[axes.size].axis, BY_KEY[axes.kl].axis) as drawing:
        drawing.set_yscale("log")
        drawing.set_ylim(*ends_of_axis(point.kl for point in points))
        _draw_points(drawing, points)
        _draw_names(drawing, points)
        _draw_below(drawing, [point for point in every if point.below])
        drawing.margins(x=0.2)  # room for names on the left of the smallest files
