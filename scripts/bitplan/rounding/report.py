"""The output check before rounding, and the summary after it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.rounding.layer import FEEDBACK


def check_output(folder: Path, plan: Path) -> None:
    """Raise `UserError` if the rounded plan would replace its own input or another plan."""
    if folder.resolve() == plan.parent.resolve():
        raise user_error("OUTPUT-IS-INPUT", "--output", "is the folder of the input plan", "Choose another folder")
    if (folder / "plan.json").exists():
        raise user_error(
            "OUTPUT-EXISTS", folder / "plan.json", "exists already", "Choose another folder or remove this one"
        )


def check_source(candidates: Path | None, rounding: str) -> None:
    """Raise `UserError` if codes are to come from a database of candidates, and another rounding than theirs is asked for."""
    if candidates is not None and rounding != FEEDBACK:
        what = f"is {rounding}, but {candidates} holds candidates rounded with {FEEDBACK}"
        raise user_error(
            "CANDIDATES-OTHER-ROUNDING", "--rounding", what, "Omit it, or round the plan with --calibration"
        )


def print_rounding(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the number of layers by rounding method, and the median error relative to rounding to nearest."""
    counts = Counter(row["rounding"] for row in rows)
    summary = ", ".join(f"{number} by {rounding}" for rounding, number in counts.most_common())
    ratios = sorted(row["error"] / row["error_nearest"] for row in rows if row["error_nearest"])
    middle = f"; median layer error {ratios[len(ratios) // 2]:.3f} of nearest" if ratios else ""
    print(f"{folder / 'plan.json'}: {len(rows)} layers rounded, {summary}{middle}")
