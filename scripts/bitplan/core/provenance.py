"""How a result was produced: a `.meta.json` next to it, which no rule reads."""

import os
import platform
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bitplan import __version__
from bitplan.core.files import write_json
from bitplan.core.memory import largest_peak_bytes

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


def write_provenance(output: Path, started: float, **facts: Any) -> None:
    """Write `<output>.meta.json`: command line, versions, machine, `facts`, and what was used until now: seconds since `started`
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
            **facts,
        },
    )
