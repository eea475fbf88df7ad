"""The figure of a genetic search: damage and diversity of each generation, and the exact optimum."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitplan.core.colours import BLACK, BLUE, LIGHT_BLUE, ORANGE
from bitplan.core.figures import svg_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _draw_diversity(axes: "Axes", generations: Sequence[float], values: Sequence[float]) -> list:
    across = axes.twinx()
    across.set_ylabel("diversity (1 - share of the commonest option)", color=ORANGE)
    across.grid(visible=False)
    lines = across.plot(generations, values, color=ORANGE, linestyle=":", label="diversity")
    across.set_ylim(bottom=0)
    return lines


def draw_history(
    history: Sequence[Mapping[str, float]], optimum: float, path: Path, title: str, unit: str = "weighted squared error"
) -> None:
    """Write an SVG: best and mean damage of each generation, the optimum as a line, diversity on the axis on the right.

    `history` holds the rows of `genetic.GeneticResult`, `optimum` is a damage in their unit. The bytes depend on the
    arguments alone.
    """
    from matplotlib.ticker import MaxNLocator

    columns = {key: [row[key] for row in history] for key in ("generation", "mean", "best", "diversity")}
    generations = columns["generation"]
    with svg_axes(path, title, "generation", f"damage ({unit})") as axes:
        lines = [
            *axes.plot(generations, columns["mean"], color=LIGHT_BLUE, label="mean damage"),
            *axes.plot(generations, columns["best"], color=BLUE, label="best damage"),
            *axes.plot(generations, [optimum] * len(history), color=BLACK, linestyle="--", label="exact optimum"),
            *_draw_diversity(axes, generations, columns["diversity"]),
        ]
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
