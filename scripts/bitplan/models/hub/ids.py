"""Ids of models on the hub: organization/name."""

import re

PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
ID = re.compile(f"{PART}/{PART}")


def looks_like_id(text: str) -> bool:
    """Return whether `text` has the form organization/name by the hub's rules. A .json is the file of an earlier step."""
    return bool(ID.fullmatch(text)) and not re.search(r"--|\.\.|\.git$|\.json$", text)
