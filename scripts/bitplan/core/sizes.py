"""Amounts of memory, as people write them."""

import re

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def bytes_of(text: str) -> int:
    """Return the bytes in an amount as 4GB, 512MB or 2GiB. Raises ValueError for any other text, and for nothing."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text.strip())
    made = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if made == 0:
        raise ValueError(f"{text!r} is not a valid size; expected e.g. 4GB, 512MB or 2GiB")
    return made
