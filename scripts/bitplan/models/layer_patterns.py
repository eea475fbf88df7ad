"""Which layers a pattern matches: one rule for configurations, searches, counts and SparseGPT's averages.

A full name matches that layer alone. A pattern with a dot or a `*`, such as `*.mlp.*`, is matched by `fnmatch` against full
names. Any other is matched against the last part of each name: `q_proj` matches every layer that ends in `.q_proj`.
Matching is case-sensitive.
"""

import re
from collections.abc import Sequence
from fnmatch import translate

from bitplan.core.errors import nearest

SUFFIX = ".weight"
# At most this many names are compared when looking for the nearest ones, which is slow.
MOST_NAMES = 5_000


def split_name(name: str) -> tuple[str, str]:
    """Return the parts of a layer's or tensor's name before and after its last dot, without `.weight`."""
    before, _, last = name.removesuffix(SUFFIX).rpartition(".")
    return before, last


def is_last_part(pattern: str) -> bool:
    """Return whether a pattern is matched against the last part of names."""
    return "." not in pattern and "*" not in pattern


def match_layers(pattern: str, names: Sequence[str]) -> list[int]:
    """Return the indices of the names that a pattern matches."""
    same = [place for place, name in enumerate(names) if name == pattern]
    if same:
        return same
    match = re.compile(translate(pattern)).match
    compared = (split_name(name)[1] for name in names) if is_last_part(pattern) else names
    return [place for place, name in enumerate(compared) if match(name)]


def nearest_layers(pattern: str, names: Sequence[str]) -> str:
    """Return a hint with the layer names most similar to a pattern, or with the first layer."""
    some = names[:MOST_NAMES]
    known = dict.fromkeys(split_name(name)[1] for name in some) if is_last_part(pattern) else some
    return nearest(pattern, known) or f"The first layer is {names[0]!r}"
