"""Runs scripts in forks of a process that has imported what they import: server.py LISTENING_FD PYTHON. Ends when its stdin does.

A client sends its streams and what it was called with (`client.py`), and reads the fork's process id and, when it has ended, its
wait status. When a client is gone, its fork is killed.
"""

import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing.process
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback

HEAVY = (
    "torch", "torch._dynamo", "torch.distributed.tensor", "transformers", "transformers.models.llama.modeling_llama",
    "transformers.conversion_mapping", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "huggingface_hub", "safetensors.torch", "scipy.optimize", "pandas", "matplotlib.pyplot", "matplotlib.backends.backend_svg",
    "llama_cpp", "pydantic", "snakemake.cli",
)  # fmt: skip


def received(client: socket.socket) -> tuple[dict, list[int]]:
    """Return a request and the client's three streams."""
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    payload = bytearray()
    while len(payload) < int.from_bytes(size, "big"):
        payload += client.recv(1 << 16)
    return json.loads(payload), streams


def become_(request: dict, streams: list[int], python: str) -> None:
    """Make this fork what a shell would have started."""
    os.setsid()
    for target, handle in enumerate(streams):
        os.dup2(handle, target)
        os.close(handle)
    os.chdir(request["folder"])
    multiprocessing.process.ORIGINAL_DIR = request["folder"]
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # The only variables that are read at import and that tests set: where the hub is, and where its files are kept.
    importlib.reload(sys.modules["huggingface_hub.constants"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    # What a script starts with its own interpreter starts warm, too.
    sys.executable = python
    first = request["words"][0]
    folder = os.getcwd() if first == "-m" else os.path.dirname(os.path.realpath(first))
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [folder, *more]


def run(words: list[str]) -> int:
    """Run a script or module and return its exit code."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(code: int) -> None:
    """End as an interpreter does, without tearing down what the server has imported."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 120
    os._exit(code)


class Server:
    """The clients, by the process id of their forks."""

    def __init__(self, listener: socket.socket, python: str) -> None:
        self.listener, self.python = listener, python
        self.clients: dict[int, socket.socket] = {}
        self.ready = selectors.DefaultSelector()
        self.woken, self.waker = socket.socketpair()
        for end_ in (self.woken, self.waker):
            end_.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.waker.fileno())

    def accept(self) -> None:
        client, _ = self.listener.accept()
        request, streams = received(client)
        if process := os.fork():
            self.clients[process] = client
            client.sendall(b"%d\n" % process)
            self.ready.register(client, selectors.EVENT_READ, process)
        else:
            self.leave(client)
            become_(request, streams, self.python)
            end(run(request["words"]))
        for handle in streams:
            os.close(handle)

    def leave(self, client: socket.socket) -> None:
        """Close in a fork what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A shell without job control starts what runs beside it with interrupts ignored; whoever interrupts a script means it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.ready.close()
        for each in (client, *self.clients.values(), self.listener, self.woken, self.waker):
            each.close()

    def reap(self) -> None:
        """Tell clients how their forks have ended."""
        while True:
            try:
                self.woken.recv(1 << 10)
            except BlockingIOError:
                break
        while self.clients:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                break
            client = self.clients.pop(process)
            if client in self.ready.get_map():
                self.ready.unregister(client)
            # A client that was killed is told nothing.
            with contextlib.suppress(OSError):
                client.sendall(b"%d\n" % status)
            client.close()

    def kill(self, client: socket.socket, process: int) -> None:
        """End the fork of a client that is gone."""
        self.ready.unregister(client)
        for end_ in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                end_(process, signal.SIGKILL)

    def serve(self) -> None:
        """Answer until stdin ends."""
        for handle in (0, self.listener, self.woken):
            self.ready.register(handle, selectors.EVENT_READ)
        while True:
            ready = [key for key, _ in self.ready.select()]
            if any(key.fileobj == 0 for key in ready):
                return
            # A fork that has ended is reaped first: its process id may be another's soon.
            self.reap()
            for key in ready:
                if key.fileobj is self.listener:
                    self.accept()
                elif key.data in self.clients:
                    self.kill(key.fileobj, key.data)


def main() -> None:
    descriptor, python = sys.argv[1:]
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # A table of a thousand patterns that transformers compiles when the first model is loaded.
    sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("llama")
    gc.collect()
    gc.freeze()
    server = Server(socket.socket(fileno=int(descriptor)), python)
    server.serve()
    for process, client in server.clients.items():
        server.kill(client, process)


if __name__ == "__main__":
    main()
