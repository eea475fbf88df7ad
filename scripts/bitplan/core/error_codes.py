"""The codes of all problems: what each means and what to do, from error_codes.tsv; the page docs/errors.md is written from it."""

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_suffix(".tsv")
PAGE = """# Errors

Every error that a user can fix is one line, and the command exits with 2:

    error [PLAN-NO-MATCH] plan.json: overrides[2]: pattern '*.mpl.*' matches no layer. Did you mean ...?

The code names the kind of problem and stays the same when the wording changes. This page is written by `scripts/write_config.py --fix`.
"""


class Code(NamedTuple):
    """The code of one kind of problem, what it means and what to do about it."""

    name: str
    meaning: str
    remedy: str


def known_codes() -> list[Code]:
    """Return all codes, by name."""
    return sorted(Code(*line.split("\t")) for line in TABLE.read_text(encoding="utf-8").splitlines())


def errors_page() -> str:
    """Return docs/errors.md: one Markdown table for each area."""
    parts = [PAGE]
    for area, codes in groupby(known_codes(), key=lambda code: code.name.split("-")[0]):
        rows = "".join(f"| `{name}` | {meaning} | {remedy} |\n" for name, meaning, remedy in codes)
        parts.append(f"\n## {area}\n\n| code | meaning | what to do |\n|---|---|---|\n{rows}")
    return "".join(parts)
