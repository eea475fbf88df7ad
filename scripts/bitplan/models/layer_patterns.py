"""Which layers a pattern names: one rule for configurations, searches, counts and SparseGPT's averages.

A layer's whole name, in full, is that layer alone. A pattern with a dot or a `*` is `fnmatch`'s on the whole name, as
`*.mlp.*`. Any other is matched with the last part of each name: `q_proj` names every layer that ends in `.q_proj`.
Case counts.
"""

import re
from collections.abc import Sequence
from fnmatch import translate

from bitplan.core.errors import nearest

SUFFIX = ".weight"
# How many names are looked through for the nearest ones: each takes a while.
MOST_NAMES = 5_000


def split_name(name: str) -> tuple[str, str]:
    """Return what stands before and after the last dot of a layer's name, or of a tensor's without its `.weight`."""
    before, _, last = name.removesuffix(SUFFIX).rpartition(".")
    return before, last


def is_last_part(pattern: str) -> bool:
    """Return whether a pattern is matched with the last parts of names only."""
    return "." not in pattern and "*" not in pattern


def matched(pattern: str, names: Sequence[str]) -> list[int]:
    """Return the places of the names that a pattern matches."""
    same = [place for place, name in enumerate(names) if name == pattern]
    if same:
        return same
    match = re.compile(translate(pattern)).match
    compared = (split_name(name)[1] for name in names) if is_last_part(pattern) else names
    return [place for place, name in enumerate(compared) if match(name)]


def nearest_layers(pattern: str, names: Sequence[str]) -> str:
    """Return a hint that names the layers nearest to a pattern, or the first one."""
    some = names[:MOST_NAMES]
    known = dict.fromkeys(split_name(name)[1] for name in some) if is_last_part(pattern) else some
    return nearest(pattern, known) or f"The first layer is {names[0]!r}"
