"""The device that a model runs on, and memory returned to the system."""

import ctypes
import os
import sys

import torch

from bitplan.core.errors import user_error


def return_free_memory() -> None:
    """Return freed memory to the system if the allocator is glibc's, which otherwise keeps most of a block's memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def pick_device(name: str) -> torch.device:
    """Return the torch device called `name`; "auto" is the first available of cuda, mps and cpu.

    Raises `UserError` if this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise user_error(
            "DEVICE-UNKNOWN", "--device", f"{name!r} is not a device", "Use cpu, cuda, cuda:N, mps or auto"
        ) from None
    index = device.index or 0
    present = {"cpu": index == 0, "cuda": index < torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise user_error("DEVICE-ABSENT", "--device", f"{name} is not available on this machine", "Use --device cpu")
    return device


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 instructions; without them bfloat16 is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(can.get(name, False) for name in ("amx_bf16", "avx512_bf16", "arm_bf16", "bf16"))


def pick_dtype(name: str, device: torch.device) -> str:
    """Return the compute dtype called `name`; "auto" is bf16 if the device has bfloat16 instructions, else fp32."""
    return name if name != "auto" else "bf16" if computes_bf16(device) else "fp32"


def free_memory() -> int:
    """Return the free main memory in bytes; 4 GiB if the system does not report it."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30
