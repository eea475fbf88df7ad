"""An OpenAI-compatible server over HTTP: which models it lists, and what it answers to a request for a completion."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bitplan.core.errors import nearest, user_error

if TYPE_CHECKING:
    import httpx2

KEY = "OPENAI_API_KEY"
LONGEST_REASON = 160
UNAUTHORIZED = (401, 403)


class Declined(Exception):
    """The server answered, but not what was asked for. The text is its reason, in one line."""


@dataclass(frozen=True)
class Server:
    """A server: its base address, as http://127.0.0.1:8000/v1, the seconds to wait for an answer, and a key that is never shown."""

    url: str
    timeout: float = 120.0
    key: str = field(default="", repr=False)

    def models(self) -> list[str]:
        """Return the names of the models that the server lists; none where it has no list. Raises `UserError` if it cannot be reached."""
        try:
            listed = self._answer("GET", "models").get("data")
        except Declined:
            return []
        entries = listed if isinstance(listed, list) else []
        return [str(entry["id"]) for entry in entries if isinstance(entry, Mapping) and "id" in entry]

    def complete(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the first choice of a completion, with the answer's `usage` in it.

        Raises `Declined` for an answer that is an error or has no choice, `UserError` if the server cannot be reached.
        """
        answer = self._answer("POST", "completions", body)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise Declined(self._reason(answer) or "the answer has no choices")
        usage = answer.get("usage")
        return {**choices[0], "usage": usage if isinstance(usage, Mapping) else {}}

    @cached_property
    def _client(self) -> "httpx2.Client":
        """One client for all requests, which keeps the connection. It follows no redirects: they could carry the key to another host."""
        import httpx2

        return httpx2.Client(timeout=self.timeout, follow_redirects=False)

    def _answer(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        import httpx2

        address = f"{self.url.rstrip('/')}/{path}"
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            answer = self._client.request(method, address, json=body, headers=headers)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError):
            hint = "Give it as http://127.0.0.1:8000/v1"
            raise user_error("SERVED-BAD-URL", self.url, "is not an address over HTTP", hint) from None
        except (httpx2.ConnectError, httpx2.TimeoutException, httpx2.ProxyError) as error:
            what = f"cannot be reached, or does not answer within {self.timeout:g} s ({type(error).__name__})"
            raise user_error(
                "SERVED-UNREACHABLE", self.url, what, "Check that the server runs, its port and --timeout"
            ) from None
        except httpx2.TransportError as error:
            raise Declined(f"the connection ended early ({type(error).__name__})") from None
        return self._content(answer)

    def _content(self, answer: Any) -> Mapping[str, Any]:
        """Return an answer's JSON object. Raises `UserError` for a refused key, `Declined` for any other error."""
        if answer.status_code in UNAUTHORIZED:
            what = f"answers {answer.status_code}: it wants a key" + (", and not this one" if self.key else "")
            raise user_error("SERVED-UNAUTHORIZED", self.url, what, f"Set {KEY} to the server's key")
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, Mapping):
            raise Declined(f"status {answer.status_code}, and no JSON object")
        if answer.is_error:
            raise Declined(f"status {answer.status_code}: {self._reason(content) or 'without a reason'}")
        return content

    def _reason(self, content: Mapping[str, Any]) -> str:
        """Return what an answer says is wrong, short, in one line and without the key; "" where it says nothing."""
        error = content.get("error", content.get("message", content.get("detail", "")))
        text = str(error.get("message", "") if isinstance(error, Mapping) else error)
        shown = text.replace(self.key, "***") if self.key else text
        return "".join(letter if letter.isprintable() else " " for letter in shown)[:LONGEST_REASON].strip()


def open_server(url: str, timeout: float) -> Server:
    """Return the server at an address, with the key of the environment, if there is one."""
    return Server(url, timeout, os.environ.get(KEY, ""))


def served_name(server: Server, name: str | None) -> str:
    """Return the name under which a model is asked for: the given one, or the only one that the server lists.

    Raises `UserError` for one that is not listed, and where none is given and there is a choice.
    """
    listed = server.models()
    if name is None and len(listed) == 1:
        return listed[0]
    if name is None:
        what = f"serves {', '.join(listed)}" if listed else "lists no models"
        raise user_error("SERVED-NO-MODEL", server.url, what, "Name the model with --served-model")
    if listed and name not in listed:
        hint = nearest(name, listed) or f"It serves {', '.join(listed)}"
        raise user_error("SERVED-NO-MODEL", server.url, f"does not serve {name!r}", hint)
    return name
