"""How a result was produced: a `.meta.json` next to it, which no rule reads."""

import platform
import resource
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bitplan import __version__
from bitplan.core.files import write_json

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


def used_so_far() -> dict[str, float]:
    """Return the processor seconds of this process and of those that it has waited for, and the largest resident memory of one, in bytes."""
    kinds = [resource.getrusage(kind) for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    # macOS counts bytes, others KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "processor_seconds": round(sum(each.ru_utime + each.ru_stime for each in kinds), 2),
        "peak_bytes": unit * max(each.ru_maxrss for each in kinds),
    }


def write_provenance(output: Path, started: float, **facts: Any) -> None:
    """Write `<output>.meta.json`: command line, versions, machine, seconds since `started` (time.monotonic), what the process used, `facts`."""
    output = Path(output)
    write_json(
        output.with_name(output.name + ".meta.json"),
        {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": versions(),
            "machine": platform.machine(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.monotonic() - started, 2),
            **used_so_far(),
            **facts,
        },
    )
