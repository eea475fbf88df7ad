"""The figure of a genetic search: damage and diversity of each generation, and the exact optimum."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitplan.core.files import write_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST, MEAN, OPTIMUM, DIVERSITY = "#1f6fb2", "#7fb2dd", "#222222", "#d1661f"
STYLE = {"svg.hashsalt": "bitplan", "svg.fonttype": "none", "font.size": 10}


def _drawn(history: Sequence[Mapping[str, float]], optimum: float, title: str, unit: str) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    across = axes.twinx()
    generations = [row["generation"] for row in history]
    lines = [
        *axes.plot(generations, [row["mean"] for row in history], color=MEAN, label="mean damage"),
        *axes.plot(generations, [row["best"] for row in history], color=BEST, label="best damage"),
        *axes.plot(generations, [optimum] * len(history), color=OPTIMUM, linestyle="--", label="exact optimum"),
        *across.plot(
            generations, [row["diversity"] for row in history], color=DIVERSITY, linestyle=":", label="diversity"
        ),
    ]
    axes.set(xlabel="generation", ylabel=f"damage ({unit})", title=title)
    across.set_ylabel("diversity (1 - share of the commonest option)", color=DIVERSITY)
    across.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def draw_history(
    history: Sequence[Mapping[str, float]], optimum: float, path: Path, title: str, unit: str = "weighted squared error"
) -> None:
    """Write an SVG: best and mean damage of each generation, the optimum as a line, diversity on the axis on the right.

    `history` holds the rows of `genetic.GeneticResult`, `optimum` is a damage in their unit. The bytes depend on the
    arguments alone.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE), write_aside(path) as aside:
        _drawn(history, optimum, title, unit).savefig(aside, format="svg", metadata={"Date": None, "Creator": None})
