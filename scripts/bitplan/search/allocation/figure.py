"""The figure of an allocation: damage against average bits, and every format alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bitplan.core.colours import BLUE, ORANGE
from bitplan.core.figures import svg_axes
from bitplan.search.allocation.problem import Allocation, AllocationProblem


def uniform_plans(problem: AllocationProblem) -> dict[str, tuple[float, float]]:
    """Return average bits and sum of damages with every layer in one format, for formats that every layer may have."""
    size, kld = problem.choices.size.sum(axis=0), problem.choices.damage.sum(axis=0)
    bits = 8 * size / problem.params
    return {
        form: (float(bits[k]), float(kld[k])) for k, form in enumerate(problem.table.formats) if np.isfinite(kld[k])
    }


def draw_front(problem: AllocationProblem, made: Sequence[Allocation], path: Path, title: str) -> None:
    """Write an SVG: damage of every plan over its average bits, and of every format alone. The bytes depend on the arguments alone."""
    points, alone = sorted((each.avg_bits_layers, each.kld) for each in made), uniform_plans(problem)
    with svg_axes(path, title, "average bits over the layers", "sum of damages (nats)") as axes:
        axes.plot(*zip(*points, strict=True), color=BLUE, marker="o", label="optimal plans")
        if alone:
            axes.plot(
                *zip(*alone.values(), strict=True), color=ORANGE, marker="s", linestyle="", label="one format for all"
            )
        for form, place in alone.items():
            axes.annotate(form, place, xytext=(5, 5), textcoords="offset points", color=ORANGE)
        if all(kld > 0 for _, kld in [*points, *alone.values()]):
            axes.set_yscale("log")
        axes.margins(x=0.08)
