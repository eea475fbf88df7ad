"""Has a script run by a server of warm commands and ends as it ends: client.py PYTHON SOCKET (SCRIPT | -m snakemake) FLAGS...

Standard library alone: it starts in hundredths of a second.
"""

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Running:
    """A script that a server runs in a fork: `process` is its id and leads a group of its own."""

    def __init__(self, server: socket.socket, process: int) -> None:
        self._server, self.process = server, process

    def ended(self) -> bool:
        """Return whether it has ended, without waiting."""
        return bool(select.select([self._server], [], [], 0)[0])

    def wait(self) -> int:
        """Return the wait status when it has ended."""
        with self._server, self._server.makefile("r") as lines:
            return int(lines.readline())


def started(
    address: str | Path, words: Sequence[str], folder: str, environment: Mapping[str, str], streams: Sequence[int]
) -> Running:
    """Have words run in a folder with three streams."""
    umask = os.umask(0)
    os.umask(umask)
    request = {"words": list(words), "folder": folder, "environment": dict(environment), "umask": umask}
    payload = json.dumps(request).encode()
    server = socket.socket(socket.AF_UNIX)
    server.connect(str(address))
    socket.send_fds(server, [len(payload).to_bytes(8, "big")], streams)
    server.sendall(payload)
    # A line byte by byte: nothing of the next one is read.
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := server.recv(1)):
            raise ConnectionError(f"the server at {address} has ended: the file log beside it says why")
        line += byte
    return Running(server, int(line))


def is_script(words: Sequence[str]) -> bool:
    """Return whether words are a script or Snakemake with its flags, and not flags of Python."""
    return words[:2] == ["-m", "snakemake"] or (words != [] and words[0].endswith(".py") and words[0][0] != "-")


def end_as(status: int) -> None:
    """End with the exit code of a wait status, or by its signal."""
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) in FORWARDED:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def main() -> None:
    python, address, *words = sys.argv[1:]
    if is_script(words):
        running = started(address, words, os.getcwd(), os.environ, (0, 1, 2))
        for number in FORWARDED:
            signal.signal(number, lambda received, _: os.kill(running.process, received))
        end_as(running.wait())
    os.execv(python, [python, *words])


if __name__ == "__main__":
    main()
