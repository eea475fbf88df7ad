"""Memory sizes as text, such as 4GB."""

import re

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 4GB, 512MB or 2GiB. Raises ValueError for any other text, and for 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text.strip())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size == 0:
        raise ValueError(f"{text!r} is no amount of memory: expected one as 4GB, 512MB or 2GiB")
    return size
