"""The largest resident memory of this process and of those that it has started, as the system counts it."""

import resource
import sys
from pathlib import Path

# getrusage counts in KiB, but on macOS in bytes.
UNIT = 1 if sys.platform == "darwin" else 1024


def peak_memory_bytes() -> int:
    """Return this process's peak resident memory in bytes, pages of mapped files among it."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, whose figure starts from that of the parent process.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def largest_peak_bytes() -> int:
    """Return the peak of the largest among this process and the processes that it has started and that have ended, in bytes."""
    return max(peak_memory_bytes(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * UNIT)
