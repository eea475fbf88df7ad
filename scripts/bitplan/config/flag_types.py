"""The argparse types of numbers, words and lists that flags are made of."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bitplan.core.sizes import normal_size, parse_size


class AllCores(int):
    """The number of this machine's cores, as a default: pages that are the same everywhere show words in its place."""


ALL_CORES = AllCores(os.cpu_count() or 1)
MOST = 2**31 - 1  # what torch and llama.cpp take as a count or a seed


def number(
    low: float = -float("inf"),
    high: float = float("inf"),
    *,
    kind: type = float,
    open_low: bool = False,
    open_high: bool = False,
) -> Callable[[str], float]:
    """Return an argparse type that accepts finite numbers from `low` to `high`, without the bounds that are open."""
    end = "" if high == float("inf") else f" to {'below ' if open_high else ''}{high:g}"
    high = min(high, MOST if kind is int else sys.float_info.max)

    def parse(text: str) -> float:
        """Return the number that a text says. Raises `ArgumentTypeError` for one out of range."""
        value = kind(text)
        fits = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
        if not fits:
            begin = f"{'over' if open_low else 'from'} {low:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: expected a number {begin}{end}")
        return value

    parse.__name__ = kind.__name__
    return parse


count = number(1, kind=int)
ratio = number(0.0, 1.0)
positive = number(0.0, open_low=True)


def size(text: str) -> int:
    """The argparse type of an amount of memory, as 4GB, 512MB or 2GiB: bytes."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size_text(text: str) -> str:
    """The argparse type of a size that is shown again, as 4GB, 500MB or 2GiB."""
    try:
        return normal_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def share(text: str) -> tuple[int, int]:
    """The argparse type of a share of the work, as 2/4: (number from 1, of how many)."""
    match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text.strip())
    if not match or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: expected number/count, from 1/4 to 4/4")
    return int(match[1]), int(match[2])


def or_word(kind: Callable[[str], Any], words: dict[str, Any]) -> Callable[[str], Any]:
    """Return an argparse type that accepts some words, each with its value, and what `kind` accepts."""

    def parse(text: str) -> Any:
        try:
            return words[text] if text in words else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number or {' or '.join(words)}") from None

    return parse


def named(kind: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Return an argparse type of NAME=VALUE: the name, and the value as `kind` reads it."""

    def parse(text: str) -> tuple[str, Any]:
        """Return name and value of NAME=VALUE. Raises `ArgumentTypeError` for any other text."""
        name, equals, value = text.rpartition("=")
        if not equals or not name:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER")
        try:
            return name, kind(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} in {text!r} is not a number") from None

    return parse


class ListAction(argparse.Action):
    """A flag that takes several values and may be repeated; what is given replaces the default."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        """Append the values to those given before."""
        before: Sequence[Any] | None = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, [*(() if before is self.default else before or ()), *values])
