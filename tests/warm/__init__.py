"""Commands without their imports: `python` and `snakemake` that run scripts in forks of a server that has imported what scripts import.

A process of a command imports for some seconds and works for a tenth of one. `environment()` has a folder in front of PATH with two
small programs that give `client.py` what they were called with; `server.py` runs it. What is started so has the folder, the variables,
the streams, the signals and the exit code of a process of its own. What is no script, or needs other variables at import, is left to
Python itself. Not shared with a process of its own: the modules that are imported already, and the hashes of strings.
"""

import atexit
import functools
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.warm.client import Running, started

HERE = Path(__file__).parent
# As the commands set them before they import anything.
BEFORE_IMPORT = {"MKL_CBWR": "AUTO,STRICT", "TQDM_DISABLE": "1"}


def _write_programs(folder: Path, address: Path) -> None:
    for name, words in (("python", ()), ("snakemake", ("-m", "snakemake"))):
        line = shlex.join([sys.executable, "-ISE", str(HERE / "client.py"), sys.executable, str(address), *words])
        (folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (folder / name).chmod(0o755)


@functools.cache
def served(number: int, variables: tuple[tuple[str, str], ...]) -> tuple[Path, subprocess.Popen]:
    """Start a server with more `variables`; return the folder of the programs in front of it, and its process, whose pipe this process holds."""
    folder = Path(tempfile.mkdtemp(prefix="bitplan-warm-"))
    _write_programs(folder, folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener, (folder / "log").open("w") as log:
        listener.bind(str(folder / "socket"))
        listener.listen(64)
        line = [sys.executable, HERE / "server.py", str(listener.fileno()), folder / "python"]
        server = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=log, stderr=log, env=os.environ | BEFORE_IMPORT | dict(variables),
            pass_fds=(listener.fileno(),), start_new_session=True,
        )  # fmt: skip
    atexit.register(server.communicate)
    return folder, server


def programs(number: int = 0, **variables: str) -> Path:
    """Return the folder of a `python` and a `snakemake` that start warm; their server ends with this process.

    Another `number` is another server, with other hashes of strings.
    """
    return served(number, tuple(sorted(variables.items())))[0]


def python() -> str:
    """Return the path of the `python` that starts scripts warm."""
    return str(programs() / "python")


def environment(number: int = 0, **variables: str) -> dict[str, str]:
    """Return the environment of this process, with more variables, in which `python` and `snakemake` start warm."""
    path = f"{programs(number, **variables)}{os.pathsep}{os.environ['PATH']}"
    return os.environ | variables | {"PATH": path}


def start(words: Sequence[str], folder: Path, log: Path) -> Running:
    """Start a script warm in a folder, its output in a log; its process may be killed like any other."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out, open(os.devnull) as nothing:
        streams = (nothing.fileno(), out.fileno(), out.fileno())
        running = started(programs() / "socket", words, str(folder), os.environ, streams)
    assert running is not None, "the environment has changed since the server was started"
    return running
