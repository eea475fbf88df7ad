"""Where a model is run, and memory that is given back."""

import ctypes
import sys

import torch

from bitplan.core.errors import user_error


def return_free_memory() -> None:
    """Give freed memory back to the system where the allocator is glibc's, which otherwise keeps most of a block."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def pick_device(name: str) -> torch.device:
    """Return the torch device called `name`; "auto" is cuda, mps or cpu, the first that is there.

    Raises `UserError` when this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise user_error("--device", f"{name!r} is no device", "Use cpu, cuda, cuda:N, mps or auto") from None
    index = device.index or 0
    present = {"cpu": index == 0, "cuda": index < torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise user_error("--device", f"{name} is not available on this machine", "Use --device cpu")
    return device
