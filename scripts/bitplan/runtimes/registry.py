"""The table of runtimes. A new one is its module, which defines `RUNTIME`, and a line here.

Modules are imported by name when they are needed, so that the code of one runtime is not behind the files of another:
`workflow/code_versions.py` counts the module of the runtime that a job is for.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from bitplan.core.errors import nearest, user_error
from bitplan.runtimes.runtime import Runtime

RUNTIMES: Mapping[str, str] = {
    "gguf": "bitplan.runtimes.gguf.runtime",
    "compressed_tensors": "bitplan.runtimes.compressed_tensors.runtime",
    "mlx": "bitplan.runtimes.mlx.runtime",
    "auto_round": "bitplan.runtimes.auto_round.runtime",
}


def known_runtime(name: str) -> str:
    """Return a runtime's name. Raises ValueError that names the nearest ones for another word."""
    if name not in RUNTIMES:
        raise ValueError(f"runtime {name!r} is not known. {nearest(name, RUNTIMES) or 'Known: ' + ', '.join(RUNTIMES)}")
    return name


@cache
def runtime_named(name: str) -> Runtime:
    """Return the runtime called `name`. Raises `UserError` for a name that is not in the table."""
    if name not in RUNTIMES:
        raise user_error(
            "RUNTIME-UNKNOWN",
            f"runtime {name!r}",
            "is not known",
            nearest(name, RUNTIMES) or f"Known: {', '.join(RUNTIMES)}",
        )
    return import_module(RUNTIMES[name]).RUNTIME


def runtime_of(path: Path) -> Runtime:
    """Return the runtime whose files end as `path` does; for any other name llama.cpp's, which knows its files by their content."""
    files = (runtime for runtime in map(runtime_named, RUNTIMES) if not runtime.is_folder)
    found = (runtime for runtime in files if path.suffix == Path(runtime.artifact).suffix)
    return next(found, runtime_named("gguf"))
