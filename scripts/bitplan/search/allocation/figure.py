"""The figure of an allocation: damage against average bits, and every format alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitplan.core.files import write_aside
from bitplan.search.allocation.problem import Allocation, AllocationProblem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANS, ALONE = "#1f6fb2", "#d1661f"
STYLE = {"svg.hashsalt": "bitplan", "svg.fonttype": "none", "font.size": 10}


def uniform_plans(problem: AllocationProblem) -> dict[str, tuple[float, float]]:
    """Return average bits and sum of damages with every layer in one format, for formats that every layer may have."""
    size, kld = problem.choices.size.sum(axis=0), problem.choices.damage.sum(axis=0)
    bits = 8 * size / problem.params
    return {
        form: (float(bits[k]), float(kld[k])) for k, form in enumerate(problem.table.formats) if np.isfinite(kld[k])
    }


def _drawn(problem: AllocationProblem, made: Sequence[Allocation], title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    points = sorted((each.avg_bits_layers, each.kld) for each in made)
    axes.plot(*zip(*points, strict=True), color=PLANS, marker="o", label="optimal plans")
    alone = uniform_plans(problem)
    if alone:
        axes.plot(*zip(*alone.values(), strict=True), color=ALONE, marker="s", linestyle="", label="one format for all")
    for form, place in alone.items():
        axes.annotate(form, place, xytext=(5, 5), textcoords="offset points", color=ALONE)
    if all(kld > 0 for _, kld in [*points, *alone.values()]):
        axes.set_yscale("log")
    axes.margins(x=0.08)
    axes.set(xlabel="average bits over the layers", ylabel="sum of damages (nats)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def draw_front(problem: AllocationProblem, made: Sequence[Allocation], path: Path, title: str) -> None:
    """Write an SVG: damage of every plan over its average bits, and of every format alone. The bytes depend on the arguments alone."""
    import matplotlib

    with matplotlib.rc_context(STYLE), write_aside(path) as aside:
        _drawn(problem, made, title).savefig(aside, format="svg", metadata={"Date": None, "Creator": None})
