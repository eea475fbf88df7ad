"""Progress of long loops: a bar on a terminal, one line every few seconds in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger(__name__)
Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, label: str, every: float = 5.0) -> Iterator[Item]:
    """Yield `items` and report how many of `total` are done, the rate and the time left."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, leave=False)
        return
    started = reported = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - reported >= every and done < total:
            reported, rate = now, done / (now - started)
            log.info("%s: %d/%d, %.2f/s, %.0f s left", label, done, total, rate, (total - done) / rate)
