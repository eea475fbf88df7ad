"""Python's search for garbage, which takes a quarter of the time in which large packages are loaded: what they create stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_packages() -> Iterator[None]:
    """Look for no garbage until the context ends, and never among what is there then."""
    looked = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if looked:
            gc.enable()
