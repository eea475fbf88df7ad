"""Patterns of layer names: `fnmatch` on the whole name, case-sensitive."""

import re
from collections.abc import Sequence
from fnmatch import translate

from bitplan.core.errors import nearest

# How many names are looked through for the nearest ones: each takes a while.
MOST_NAMES = 5_000
WILDCARD = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|[^*?[]+|\[")


def matched(pattern: str, names: Sequence[str]) -> list[int]:
    """Return the places of the names that match."""
    match = re.compile(translate(pattern)).match
    return [place for place, name in enumerate(names) if match(name)]


def matched_parts(pattern: str, names: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return for the place of each name that matches what each `*` and `?` stands for; not `**`, which matches as `*`, and no set."""
    match = re.compile("".join(map(_expression, WILDCARD.findall(pattern)))).fullmatch
    return {place: found.groups() for place, name in enumerate(names) if (found := match(name))}


def told_apart(pattern: str) -> int:
    """Return how many wildcards of a pattern `matched_parts` tells of."""
    return sum(_expression(part).startswith("(") for part in WILDCARD.findall(pattern))


def _expression(part: str) -> str:
    """Return the regular expression of a wildcard, a set or plain text."""
    if len(part) > 1 and part.startswith("["):
        held = part[1:-1].replace("\\", "\\\\")
        return f"[^{held[1:]}]" if held.startswith("!") else f"[{held}]"
    return {"*": "(.*)", "?": "(.)"}.get(part, ".*" if part.startswith("*") else re.escape(part))


def nearest_layers(pattern: str, names: Sequence[str]) -> str:
    """Return a hint that names the layers nearest to a pattern, or the first one."""
    return nearest(pattern, names[:MOST_NAMES]) or f"The first layer is {names[0]!r}"
