"""Single files from a model hub: continued where a connection broke, and taken only when size and hash are right.

huggingface_hub finds the file, knows the token and follows redirects. It throws a part away when a call ends early and
compares no hash, so that this is done here.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bitplan.core.errors import user_error

log = logging.getLogger(__name__)
Result = TypeVar("Result")

CONTACTS = 4  # tries to reach the hub at all
TRIES = 6  # tries in a row that bring less than a mebibyte
FETCHES = 3  # whole copies with a wrong hash
LONGEST_PAUSE = 600.0
MIB = 2**20
PIECE = 8 * MIB
REPORT_EVERY = 10.0
PASSING = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it. `kind` says what `hash` is: "sha256" of a large file, "blob_id" (git's SHA-1) of another."""

    name: str
    size: int
    kind: str
    hash: str

    def to_json(self) -> dict[str, Any]:
        """Return the file's entry in a record."""
        return {"name": self.name, "size": self.size, self.kind: self.hash}


def _hash(path: Path, kind: str) -> str:
    start = f"blob {path.stat().st_size}\0".encode() if kind == "blob_id" else b""
    digest = hashlib.sha1(start, usedforsecurity=False) if kind == "blob_id" else hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def is_whole(path: Path, file: HubFile) -> bool:
    """Return whether there is a file at `path` with the size and the hash that the hub gives."""
    return path.is_file() and path.stat().st_size == file.size and _hash(path, file.kind) == file.hash


def base_pause() -> float:
    """Return the seconds to wait before the first new try; each further pause is twice as long. Raises `UserError`."""
    text = os.environ.get("BITPLAN_HUB_PAUSE", "1")
    try:
        return max(0.0, float(text))
    except ValueError:
        raise user_error(
            "HUB-BAD-PAUSE", "BITPLAN_HUB_PAUSE", f"is not a number of seconds (it is {text!r})", "Unset it"
        ) from None


def _seconds(text: str) -> float:
    """Return what a Retry-After header asks for: seconds, or a date; 0 when it is neither."""
    from email.utils import parsedate_to_datetime

    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def pause_asked(headers: Mapping[str, str]) -> float:
    """Return the seconds that the hub asks to wait, by Retry-After or by its own header; 0 when it does not say."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    own = float(limit.reset_in_seconds) if limit and not limit.remaining else 0.0
    return max(own, _seconds(headers.get("Retry-After", "")))


def _asked_by(error: Exception) -> float | None:
    """Return how long to wait at least before trying again, or None where another try would end the same."""
    import httpx2

    response = getattr(error, "response", None)
    if response is None:
        lasting = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
        return 0.0 if isinstance(error, httpx2.TransportError) and not isinstance(error, lasting) else None
    return pause_asked(response.headers) if response.status_code in PASSING else None


def retried(action: Callable[[], Result], tries: int, progress: Callable[[], int] = lambda: 0) -> Result:
    """Return what `action` returns, trying again while an error may pass: `tries` times in a row without `progress`.

    Raises the last error when they are used up, or when the hub asks for a pause that is longer than `LONGEST_PAUSE`.
    """
    failures, pause = 0, base_pause()
    while True:
        before = progress()
        try:
            return action()
        except Exception as error:
            failures = 1 if progress() > before else failures + 1
            asked = _asked_by(error)
            if asked is None or failures >= tries or asked > LONGEST_PAUSE:
                raise
            wait = max(asked, pause * 2 ** (failures - 1))
            status = getattr(getattr(error, "response", None), "status_code", None)
            level = logging.WARNING if failures == 1 else logging.DEBUG
            log.log(level, "%s: trying again in %.3g s", status or type(error).__name__, wait)
        time.sleep(wait)


def size_of(path: Path) -> int:
    """Return the bytes at `path`, 0 when there is none."""
    return path.stat().st_size if path.is_file() else 0


def part_of(target: Path, file: HubFile) -> Path:
    """Return where the bytes of `file` wait until they are whole: a hidden name that says which content it is."""
    return target.with_name(f".{target.name}.{file.hash[:12]}.part")


def _told(pieces: Iterable[bytes], file: HubFile, done: int) -> Iterator[bytes]:
    told = time.monotonic()
    for piece in pieces:
        yield piece
        done += len(piece)
        if time.monotonic() - told >= REPORT_EVERY:
            told = time.monotonic()
            log.info("%s: %.0f of %.0f MB", file.name, done / 1e6, file.size / 1e6)


def _receive(url: str, headers: Mapping[str, str], file: HubFile, part: Path) -> None:
    """Add to `part` what it lacks. Raises the transport's errors; what came before them stays in `part`."""
    import httpx2
    from huggingface_hub import constants, get_session, hf_raise_for_status

    have = size_of(part)
    if have >= file.size > 0:
        return
    # Compressed bodies have offsets of their own, at which a broken transfer could not go on.
    asked = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=asked, timeout=timeout) as response:
        hf_raise_for_status(response)
        have = have if response.status_code == 206 else 0
        with open(part, "ab" if have else "wb") as handle:
            for piece in _told(response.iter_bytes(), file, have):
                handle.write(piece)
                if handle.tell() > file.size:
                    return
    if size_of(part) < file.size:
        raise httpx2.RemoteProtocolError("the answer ended early")


def _received(url: str, headers: Mapping[str, str], file: HubFile, part: Path) -> bool:
    """Bring `part` to its full size, and return whether its hash is right. A part that the hub cannot continue is not."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        retried(lambda: _receive(url, headers, file, part), TRIES, lambda: size_of(part) // MIB)
    except HfHubHTTPError as error:
        if error.response.status_code != 416:
            raise
    return is_whole(part, file)


def obtain(url: str, headers: Mapping[str, str], file: HubFile, target: Path) -> None:
    """Write `file` to `target` in one step, once it is whole. Raises `UserError` when its hash stays wrong."""
    part = part_of(target, file)
    for _ in range(FETCHES):
        if _received(url, headers, file, part):
            os.replace(part, target)
            return
        part.unlink(missing_ok=True)
        log.warning("%s came damaged: fetching it anew", file.name)
        time.sleep(base_pause())
    raise user_error(
        "HUB-CHECKSUM",
        file.name,
        f"came {FETCHES} times with another content than the hub lists for it",
        "Try again later, or from another network: a proxy may change files",
    )
