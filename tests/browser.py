"""A headless Chromium, driven over its debugging pipe: what a page shows and does, and what it complains of."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"),
)
PATIENCE = 60.0


class Page:
    """A page in a browser. `complaints` are errors of its programs and of its console; `requests` the addresses that it asked for."""

    def __init__(self, requests: int, answers: int) -> None:
        self._out, self._in, self._count, self._rest = requests, answers, 0, b""
        self.session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            self._rest += os.read(self._in, 1 << 20)
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, message: dict[str, Any]) -> None:
        name, told = message.get("method"), message.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"])[:500])
        elif name == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(str([each.get("value") or each.get("description") for each in told["args"]]))
        elif name == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(told["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the browser's answer to a call of its protocol."""
        self._count += 1
        call = {"id": self._count, "method": method, "params": params}
        line = call | ({"sessionId": self.session} if self.session else {})
        os.write(self._out, json.dumps(line).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while (message := self._message(until)).get("id") != self._count:
            self._note(message)
        assert "error" not in message, message["error"]
        return message["result"]

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < until, expression
            time.sleep(0.05)

    def size(self, width: int, height: int = 900) -> None:
        """Give the window a size, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def dark(self, yes: bool = True) -> None:
        """Prefer dark pages, or light ones."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if yes else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Yield a page of a browser of its own, whose profile lies in a folder."""
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    line = ["bash", "-c", 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"', "bash", str(their_in), str(their_out)]
    line += [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    job = subprocess.Popen(line, pass_fds=(their_in, their_out), stderr=subprocess.DEVNULL, start_new_session=True)
    os.close(their_in), os.close(their_out)
    try:
        yield Page(our_out, our_in)
    finally:
        os.killpg(job.pid, signal.SIGTERM)
        job.wait()
        os.close(our_out), os.close(our_in)
