"""What the wildcards of a pattern stand for in each name that it matches."""

import re
from collections.abc import Sequence

from bitplan.models.layer_patterns import is_last_part, match_layers, split_name

WILDCARD = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|[^*?[]+|\[")


def matched_parts(pattern: str, names: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return for the place of each name that matches what each `*` and `?` stands for; not `**`, which matches as `*`, and no set.

    Of a pattern for the last part of names, what stands before that part is the first: `q_proj` tells as `*.q_proj` does.
    """
    match = re.compile("".join(map(_expression, WILDCARD.findall(pattern)))).fullmatch
    found = {}
    for place in match_layers(pattern, names):
        before, part = split_name(names[place]) if is_last_part(pattern) else ("", names[place])
        parts = match(part)
        found[place] = ((before,) if is_last_part(pattern) else ()) + (parts.groups() if parts else ())
    return found


def told_apart(pattern: str) -> int:
    """Return how many parts of a name `matched_parts` tells of."""
    return is_last_part(pattern) + sum(_expression(part).startswith("(") for part in WILDCARD.findall(pattern))


def _expression(part: str) -> str:
    """Return the regular expression of a wildcard, a set or plain text."""
    if len(part) > 1 and part.startswith("["):
        held = part[1:-1].replace("\\", "\\\\")
        return f"[^{held[1:]}]" if held.startswith("!") else f"[{held}]"
    return {"*": "(.*)", "?": "(.)"}.get(part, ".*" if part.startswith("*") else re.escape(part))
