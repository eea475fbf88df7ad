"""The output check before rounding, and the summary after it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error


def check_output(folder: Path, plan: Path) -> None:
    """Raise `UserError` if the rounded plan would replace its own input or another plan."""
    if folder.resolve() == plan.parent.resolve():
        raise user_error("OUTPUT-IS-INPUT", "--output", "is the folder of the input plan", "Choose another folder")
    if (folder / "plan.json").exists():
        raise user_error(
            "OUTPUT-EXISTS", folder / "plan.json", "exists already", "Choose another folder or remove this one"
        )


def print_rounding(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the number of layers by rounding method, and the median error relative to rounding to nearest."""
    counts = Counter(row["rounding"] for row in rows)
    summary = ", ".join(f"{number} by {rounding}" for rounding, number in counts.most_common())
    ratios = sorted(row["error"] / row["error_nearest"] for row in rows if row["error_nearest"])
    middle = f"; median layer error {ratios[len(ratios) // 2]:.3f} of nearest" if ratios else ""
    print(f"{folder / 'plan.json'}: {len(rows)} layers rounded, {summary}{middle}")
