"""Memory sizes as text, such as 4GB."""

import math
import re

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 4GB, 512MB or 2GiB, in any case. Raises ValueError for any other text, and for 0."""
    match = SIZE.fullmatch(text)
    size = int(float(match[1]) * UNITS[_unit(match)]) if match else 0
    if size == 0:
        raise ValueError(f"{text!r} is not a valid size; expected e.g. 4GB, 512MB or 2GiB")
    return size


def _unit(match: re.Match) -> str:
    prefix, *binary, _ = match[2]
    return f"{prefix.upper()}{'i' if binary else ''}B"


def normal_size(text: str) -> str:
    """Return a size as it is shown everywhere, as 4GB for "4 gb". Raises ValueError for what is none."""
    parse_size(text)
    match = SIZE.fullmatch(text)
    return f"{float(match[1]):.10g}{_unit(match)}"


def in_unit_of(size: float, other: str, up: bool = False) -> str:
    """Return bytes in the unit of another size, with 4 digits, rounded `up` or down: what is shown as a bound has to hold."""
    unit = _unit(SIZE.fullmatch(other))
    value = size / UNITS[unit]
    digits = max(0, 3 - math.floor(math.log10(value))) if value > 0 else 0
    shown = (math.ceil if up else math.floor)(value * 10**digits) / 10**digits
    return f"{shown:.{digits}f}".rstrip("0").rstrip(".") + unit if digits else f"{shown:.0f}{unit}"
