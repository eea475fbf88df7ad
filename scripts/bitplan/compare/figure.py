"""The figure of the comparison: KL of each GGUF file against its size in bits per parameter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMALLEST_KL = 1e-8
COLOURS = {"llama.cpp": "#777777", "adaptive": "#1f6fb2", "random": "#d1661f"}


def draw(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write an SVG: a point for each plan and baseline with its standard error, KL on a logarithmic axis.

    The bytes depend on the rows alone.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "bitplan", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for method in sorted({row["method"] for row in rows}):
        some = [row for row in rows if row["method"] == method]
        x, y = [row["avg_bits_file"] for row in some], [max(row["file_kl"], SMALLEST_KL) for row in some]
        errors = [min(row["file_kl_error"] or 0.0, 0.9 * kl) for row, kl in zip(some, y, strict=True)]
        axes.errorbar(x, y, yerr=errors, fmt="o", label=method, color=COLOURS.get(method), capsize=3)
    for row in rows:
        place = (row["avg_bits_file"], max(row["file_kl"], SMALLEST_KL))
        axes.annotate(row["name"], place, textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set(
        yscale="log",
        xlabel="file size (bits per parameter)",
        ylabel="mean KL to full precision (nats per token)",
        title=title,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
