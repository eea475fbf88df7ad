"""The figure of the comparison: KL of each GGUF file against its size in bits per parameter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitplan.core.figures import GREY, OCHRE, svg_axes
from bitplan.report.metrics import BY_KEY
from bitplan.search.registry import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Below this a file is as good as full precision: it is drawn at the lower edge, so that the others keep the room.
LOSSLESS_KL = 1e-6
FILE_SIZE, PLAN_SIZE = "avg_bits_file", "avg_bits"
# The colour of each method.
COLOURS = {
    **{"llama.cpp": GREY, "uniform": OCHRE},
    **{name: method.colour for name, method in METHODS.items()},
}
# More points than these have no room for names: those of a method are joined by a line instead.
MOST_NAMES = 16
# About the room that a name takes, in bits and as a ratio of KL.
NAME_BITS, NAME_RATIO = 2.0, 1.1


def _height(row: Mapping[str, Any], floor: float) -> float:
    return max(row["file_kl"], floor)


def _draw_points(axes: "Axes", rows: Sequence[Mapping[str, Any]], floor: float) -> None:
    mark = "o" if len(rows) <= MOST_NAMES else "o-"
    rows = sorted(rows, key=lambda row: row["avg_bits_file"])
    for method in sorted({row["method"] for row in rows}):
        some = [row for row in rows if row["method"] == method]
        x, y = [row["avg_bits_file"] for row in some], [_height(row, floor) for row in some]
        errors = [min(row["file_kl_error"] or 0.0, 0.9 * kl) for row, kl in zip(some, y, strict=True)]
        axes.errorbar(x, y, yerr=errors, fmt=mark, label=method, color=COLOURS.get(method))


def _has_neighbour(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], floor: float) -> bool:
    """Return whether another point stands where this one's name would be written on its right, or the axes end there."""
    aside = [
        (other["avg_bits_file"] - row["avg_bits_file"], _height(other, floor) / _height(row, floor)) for other in rows
    ]
    return max(bits for bits, _ in aside) == 0 or any(
        0 < bits < NAME_BITS and 1 / NAME_RATIO < ratio < NAME_RATIO for bits, ratio in aside
    )


def _draw_names(axes: "Axes", rows: Sequence[Mapping[str, Any]], floor: float) -> None:
    for row in rows if len(rows) <= MOST_NAMES else ():
        name = row["name"] if row["file_kl"] >= floor else f"{row['name']} ({row['file_kl']:.0e})"
        left = _has_neighbour(row, rows, floor)
        place, shift = (row["avg_bits_file"], _height(row, floor)), (-7 if left else 7, 5)
        axes.annotate(name, place, textcoords="offset points", xytext=shift, fontsize=8, ha="right" if left else "left")


def as_simulated(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in which the plan's own bits and KL stand where the file's would: for models without GGUF files."""
    return [
        {**row, "avg_bits_file": row["avg_bits"], "file_kl": row["kl"], "file_kl_error": row["kl_error"]}
        for row in rows
    ]


def draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str, size: str = FILE_SIZE) -> None:
    """Write an SVG: a point for each plan and baseline with its standard error, KL on a logarithmic axis.

    `size` is the metric whose name the axis along has. A file that answers with NaN has no point. The bytes depend on the rows alone.
    """
    rows = [row for row in rows if row["file_kl"] is not None]
    floor = min((row["file_kl"] for row in rows if row["file_kl"] > LOSSLESS_KL), default=LOSSLESS_KL) / 2
    with svg_axes(path, title, BY_KEY[size].axis, BY_KEY["kl"].axis) as axes:
        _draw_points(axes, rows, floor)
        _draw_names(axes, rows, floor)
        axes.set_yscale("log")
        axes.margins(x=0.1)
