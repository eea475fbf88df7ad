"""The one style of figures: size, fonts and colours, and SVG files whose bytes depend on what is drawn alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bitplan.core.files import write_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (8, 5)  # inches
STYLE = {
    **{"svg.hashsalt": "bitplan", "svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif"},
    **{"axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False, "lines.linewidth": 1.2, "lines.markersize": 5},
    **{"axes.spines.top": False, "axes.spines.right": False, "errorbar.capsize": 3},
}


@contextmanager
def svg_axes(path: Path, title: str, xlabel: str, ylabel: str) -> Iterator["Axes"]:
    """Yield axes to draw into, and write them as an SVG when the block ends; nothing is written when it raises.

    Labelled lines get a legend on the axes, unless the block has given the figure one.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        yield axes
        if not figure.legends and axes.get_legend_handles_labels()[0]:
            axes.legend()
        with write_aside(path) as aside:
            figure.savefig(aside, format="svg", metadata={"Date": None, "Creator": None})
