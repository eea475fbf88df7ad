"""A model hub on loopback that serves one folder as a repository, and fails as it is told to."""

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 20_000  # bytes from which a file counts as stored with Git LFS


@dataclass
class Fault:
    """What goes wrong for the next `times` GET requests whose path ends with `path`.

    `what`: "drop" (the connection ends after `at` bytes), "reset" (the same, as a TCP reset), "stall" (nothing comes after
    `at` bytes), "truncate" (`at` bytes are said to be all), "long" (a byte too many), "corrupt" (right length, wrong bytes),
    "status" (an answer `status` with `headers`), "html" (a page that is no hub's).
    """

    what: str
    path: str = ""
    times: int = 1_000_000
    at: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request that came, and the bytes of a file that went out for it."""

    method: str
    path: str
    headers: dict[str, str]
    sent: list[int]


class Hub:
    """The repository and what happened to it: faults to come in `faults`, requests so far in `asked`."""

    def __init__(self, folder: Path, model_id: str) -> None:
        self.folder, self.id, self.url = folder, model_id, ""
        self.names: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.ignores_range = False
        self.revisions = {"main", "v1"}
        self.blind = False  # lists files without hashes

    @property
    def files(self) -> dict[str, bytes]:
        found = {p.relative_to(self.folder).as_posix(): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}
        return found | self.names

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(name.encode() + body for name, body in sorted(self.files.items()))).hexdigest()

    def of(self, name: str) -> list[Asked]:
        """The GET requests for a file."""
        return [one for one in self.asked if one.method == "GET" and one.path.endswith(f"/{name}")]

    def listing(self) -> list[dict]:
        return [{"name": name, **hashes(body)} for name, body in sorted(self.files.items())]

    def fault(self, path: str) -> Fault | None:
        found = next((fault for fault in self.faults if fault.times and path.endswith(fault.path)), None)
        if found:
            found.times -= 1
        return found


def hashes(body: bytes) -> dict:
    """Size and hashes of a file, as the hub keeps them: git's of the pointer, and SHA-256, for a large one."""
    sha256 = hashlib.sha256(body).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(body)}\n".encode()
    stored = pointer if len(body) >= LARGE else body
    blob = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
    return {"size": len(body), "blob": blob, "sha256": sha256 if len(body) >= LARGE else None, "pointer": len(pointer)}


def sibling(file: dict) -> dict:
    lfs = {"size": file["size"], "sha256": file["sha256"], "pointerSize": file["pointer"]}
    entry = {"rfilename": file["name"], "size": file["size"], "blobId": file["blob"]}
    return entry | ({"lfs": lfs} if file["sha256"] else {})


def leaf(file: dict) -> dict:
    lfs = {"size": file["size"], "oid": file["sha256"], "pointerSize": file["pointer"]}
    entry = {"type": "file", "path": file["name"], "size": file["size"], "oid": file["blob"]}
    return entry | ({"lfs": lfs} if file["sha256"] else {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answered()

    def do_GET(self) -> None:
        self.answered()

    def answered(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = Asked(self.command, path, {k.lower(): v for k, v in self.headers.items()}, [])
        self.hub.asked.append(asked)
        fault = self.hub.fault(path) if self.command == "GET" else None
        if fault and fault.what == "status":
            # A careless server: it repeats what it was sent.
            echo = json.dumps({"error": f"refused {self.headers.get('Authorization')}"}).encode()
            return self.reply(fault.status, echo, {"Content-Type": "application/json", **fault.headers})
        if fault and fault.what == "html":
            return self.reply(200, b"<html>hello</html>", {"Content-Type": "text/html"})
        if path.startswith("/api/models/"):
            return self.api(path.removeprefix("/api/models/"))
        return self.file(path, asked, fault)

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, code: str) -> None:
        self.reply(404, b"{}", {"Content-Type": "application/json", "X-Error-Code": code})

    def known(self, revision: str) -> bool:
        return revision in (*self.hub.revisions, self.hub.commit)

    def api(self, rest: str) -> None:
        hub = self.hub
        if not f"{rest}/".startswith(f"{hub.id}/"):
            return self.refuse("RepoNotFound")
        kind, _, revision = rest.removeprefix(hub.id).lstrip("/").partition("/")
        if revision and not self.known(revision):
            return self.refuse("RevisionNotFound")
        if kind == "tree":
            content = [leaf(file) for file in hub.listing()]
        else:
            siblings = [sibling(file) for file in hub.listing()]
            if hub.blind:
                siblings = [{"rfilename": one["rfilename"]} for one in siblings]
            content = {"id": hub.id, "modelId": hub.id, "sha": hub.commit, "siblings": siblings}
        return self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def file(self, path: str, asked: Asked, fault: Fault | None) -> None:
        prefix, _, rest = path.partition("/resolve/")
        named = next((each for each in self.hub.revisions if rest.startswith(f"{each}/")), rest.partition("/")[0])
        revision, name = named, rest.removeprefix(f"{named}/")
        if prefix != f"/{self.hub.id}" or not self.known(revision):
            return self.refuse("RevisionNotFound")
        if name not in self.hub.files:
            return self.refuse("EntryNotFound")
        body = self.hub.files[name]
        facts = hashes(body)
        start, _, _ = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        begin = 0 if self.hub.ignores_range else int(start or 0)
        if begin and begin >= len(body):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{facts["sha256"] or facts["blob"]}"'}
        headers |= {"X-Linked-Size": str(len(body)), "X-Linked-Etag": headers["ETag"], "Accept-Ranges": "bytes"}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        return self.send_file(206 if begin else 200, body[begin:], headers, asked, fault or Fault("none"))

    def send_file(self, status: int, body: bytes, headers: dict[str, str], asked: Asked, fault: Fault) -> None:
        broken = fault.what in ("drop", "reset", "stall")
        if fault.what == "truncate":
            body = body[: fault.at]
        if fault.what == "corrupt":
            body = bytes(byte ^ 0xFF for byte in body[:64]) + body[64:]
        if fault.what == "long":
            body += b"!"
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "GET":
            return
        out = body[: fault.at] if broken else body
        asked.sent.append(len(out))
        self.wfile.write(out)
        self.wfile.flush()
        if broken:
            self.break_off(fault.what)

    def break_off(self, how: str) -> None:
        if how == "stall":
            time.sleep(30)
        if how == "reset":
            time.sleep(0.2)  # what was sent is to arrive before
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        if how != "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went away: that is what is tried."""


@contextmanager
def serving(folder: Path, model_id: str = "org/tiny") -> Iterator[Hub]:
    """Serve a folder as a repository, on a free port, while the block runs."""
    hub = Hub(folder, model_id)
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
