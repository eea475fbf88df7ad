"""How a result was produced: a `.meta.json` next to it, which no rule reads."""

import platform
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bitplan import __version__
from bitplan.core.files import write_json

PACKAGES = ("torch", "transformers", "numpy", "gguf", "llama-cpp-python")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_provenance(output: Path, started: float, **facts: Any) -> None:
    """Write `<output>.meta.json`: command line, versions, machine, seconds since `started` (time.monotonic), `facts`."""
    output = Path(output)
    write_json(
        output.with_name(output.name + ".meta.json"),
        {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": {
                "bitplan": __version__,
                "python": platform.python_version(),
                **{p: _version(p) for p in PACKAGES},
            },
            "machine": platform.machine(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.monotonic() - started, 2),
            **facts,
        },
    )
