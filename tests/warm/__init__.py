"""Commands without their imports: `python` and `snakemake` that run scripts in forks of a server that has imported what scripts import.

A process of a command imports for some seconds and works for a tenth of one. `environment()` has a folder in front of PATH with two
small programs that give `client.py` what they were called with; `server.py`, started when first asked, runs it. What is started so
has the folder, the variables, the streams, the signals and the exit code of a process of its own; what it shares with others is the
modules that are imported already and the hashes of strings. What is no script is left to Python itself.
"""

import atexit
import functools
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.warm.client import Running, started

HERE = Path(__file__).parent
PYTHON = sys.executable
# As the commands set them before they import anything.
BEFORE_IMPORT = {"MKL_CBWR": "AUTO,STRICT", "TQDM_DISABLE": "1"}


def _write_programs(folder: Path, address: Path) -> None:
    for name, words in (("python", ()), ("snakemake", ("-m", "snakemake"))):
        line = shlex.join([PYTHON, "-ISE", str(HERE / "client.py"), PYTHON, str(address), *words])
        (folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (folder / name).chmod(0o755)


def _serve(listener: socket.socket, folder: Path, environment: Mapping[str, str]) -> None:
    """Wait for the first client, then start the server, not in what a test has made of the environment; stop it when this process ends."""
    select.select([listener], [], [])
    line = [PYTHON, HERE / "server.py", str(listener.fileno()), folder / "python"]
    with listener, (folder / "log").open("w") as log:
        server = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**environment, **BEFORE_IMPORT},
            pass_fds=(listener.fileno(),), start_new_session=True,
        )  # fmt: skip
    atexit.register(server.communicate)


@functools.cache
def programs(number: int = 0) -> Path:
    """Return the folder of a `python` and a `snakemake` that start warm; their server ends with this process.

    Another `number` is another server, with other hashes of strings.
    """
    folder = Path(tempfile.mkdtemp(prefix="bitplan-warm-"))
    atexit.register(shutil.rmtree, folder)
    _write_programs(folder, folder / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    threading.Thread(target=_serve, args=(listener, folder, dict(os.environ)), daemon=True).start()
    return folder


def environment(number: int = 0) -> dict[str, str]:
    """Return the environment of this process in which `python` and `snakemake` are those of `programs`."""
    return os.environ | {"PATH": f"{programs(number)}{os.pathsep}{os.environ['PATH']}"}


def use_() -> None:
    """Have what this process starts with its own interpreter, and the programs `python` and `snakemake`, start warm.

    On Linux, where a process that has loaded these libraries can be forked. Not where BITPLAN_TESTS_COLD is set: the jobs of a cluster are
    processes of its own, whose memory and end it sees.
    """
    if sys.platform != "linux" or os.environ.get("BITPLAN_TESTS_COLD"):
        return
    sys.executable = str(programs() / "python")
    os.environ["PATH"] = environment()["PATH"]


def start(words: Sequence[str], folder: Path, log: Path) -> Running:
    """Start a script warm in a folder, its output in a log; its process may be killed like any other."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out, open(os.devnull) as nothing:
        streams = (nothing.fileno(), out.fileno(), out.fileno())
        return started(programs() / "socket", words, str(folder), os.environ, streams)
