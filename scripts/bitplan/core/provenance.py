"""How a result was produced: a `.meta.json` next to it, which no rule reads."""

import logging
import os
import platform
import shlex
import stat
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bitplan import __version__
from bitplan.core.files import write_json
from bitplan.core.memory import largest_peak_bytes

LOGGERS = "bitplan"
PACKAGES = ("torch", "transformers", "numpy", "gguf", "llama-cpp-python", "compressed-tensors")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Return {package: version} of bitplan, Python and the packages that decide results; None for one that is not there."""
    packages = {package: _version(package) for package in PACKAGES}
    return {"bitplan": __version__, "python": platform.python_version(), **packages}


class WarningRecords(logging.Handler):
    """Keeps the warnings of the project's own loggers, each once, for the record of a result."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(logging.Filter(LOGGERS))
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self.texts[record.getMessage()] = None


def record_warnings_() -> None:
    """Keep the warnings that are logged from now on, for `write_provenance`."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, WarningRecords):
            root.removeHandler(handler)
    root.addHandler(WarningRecords())


def _warnings() -> list[str]:
    """Return the warnings that were logged since they are kept."""
    kept = (handler for handler in logging.getLogger().handlers if isinstance(handler, WarningRecords))
    return [text for handler in kept for text in handler.texts]


def _log() -> str | None:
    """Return the file that standard error goes to, seen from the working directory; None for a terminal, and where the system does not say."""
    try:
        number = sys.stderr.fileno()
        if stat.S_ISREG(os.fstat(number).st_mode):
            return os.path.relpath(os.readlink(f"/proc/self/fd/{number}"))
    except (OSError, ValueError):
        return None
    return None


def write_provenance(output: Path, started: float, **facts: Any) -> None:
    """Write `<output>.meta.json`: command line, versions, machine, log, warnings, `facts`, and what was used until now: seconds since `started`
    (time.monotonic), those of processors and the largest memory, of this process and those that it has started."""
    output, used = Path(output), os.times()
    write_json(
        output.with_name(output.name + ".meta.json"),
        {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": versions(),
            "machine": platform.machine(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.monotonic() - started, 2),
            "processor_seconds": round(sum(used[:4]), 2),
            "peak_memory_bytes": largest_peak_bytes(),
            "log": _log(),
            "warnings": _warnings(),
            **facts,
        },
    )
