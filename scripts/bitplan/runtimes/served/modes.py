"""How servers are asked for the log-probabilities of a text, and how their answers are read.

vLLM (0.32) has `prompt_logprobs`: all positions in one answer, by token id. SGLang and llama-cpp-python have `echo` with `logprobs`: all
positions, by text; the second takes the prompt as text alone. llama-server refuses `echo` and mlx_lm.server has none: they are asked for
the next token after every prefix, the first by ids, the second by text. A window of n tokens has n - 1 positions: its tokens after the first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bitplan.core.errors import UserError, user_error
from bitplan.runtimes.served.server import Declined
from bitplan.runtimes.served.token_names import TokenNames

# Texts of several tokens, and those that a server cuts, name no token; of another vocabulary hardly any would.
LEAST_NAMED = 0.4
MLX_MOST = 10


class Position(NamedTuple):
    """What a server says of a position, in nats: log-probability of the text's own token (None where it does not say), those of its most
    likely tokens {id: value}, and the most likely one (None where its text names several tokens)."""

    own: float | None
    top: Mapping[int, float]
    best: int | None


Positions = list[Position | None]


class Prompt(NamedTuple):
    """The tokens that were sent, and the names of all tokens."""

    tokens: Sequence[int]
    names: TokenNames


def _number(value: Any) -> float:
    """Return a log-probability. Raises `Declined` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value > 1e-3:
        raise Declined(f"{value!r} is no log-probability")
    return float(value)


def _position(values: Mapping[Any, Any], token: int, ids: Mapping[Any, int], own: Any = None) -> Position:
    """Return a position from {name: log-probability} and the ids of names; `own` is the value of `token` where it is said apart."""
    numbers = {name: _number(value) for name, value in values.items()}
    top = {ids[name]: value for name, value in numbers.items() if name in ids}
    best = ids.get(max(numbers, key=numbers.__getitem__)) if numbers else None
    return Position(top.get(token) if own is None else _number(own), top, best)


def _truncated(held: int, wanted: int) -> UserError:
    what = f"read {held} tokens, {wanted} were sent"
    hint = "Serve the model with a longer context or use a smaller --length; a server that takes text may add a BOS: --bos always"
    return user_error("SERVED-TRUNCATED", "server", what, hint)


def check_usage(choice: Mapping[str, Any], prompt: Prompt) -> None:
    """Raise `UserError` if the server says that it read another number of tokens than was sent."""
    held = choice["usage"].get("prompt_tokens")
    if isinstance(held, int) and held != len(prompt.tokens):
        raise _truncated(held, len(prompt.tokens))


def read_prompt_logprobs(choice: Mapping[str, Any], prompt: Prompt) -> Positions:
    """Return the positions of vLLM's `prompt_logprobs`: null, then {"id": {"logprob": ...}} for each token."""
    rows = choice.get("prompt_logprobs")
    if not isinstance(rows, list):
        raise Declined("no prompt_logprobs in the answer")
    if len(rows) != len(prompt.tokens):
        raise _truncated(len(rows), len(prompt.tokens))
    positions: Positions = []
    for token, row in zip(prompt.tokens[1:], rows[1:], strict=True):
        if not isinstance(row, Mapping) or str(token) not in row:
            raise _other_tokens("has no value for the token that was sent")
        values = {int(name): entry["logprob"] for name, entry in row.items()}
        positions.append(_position(values, token, {name: name for name in values}))
    return positions


def _other_tokens(what: str) -> UserError:
    hint = "Check that --model is the model that is served"
    return user_error("SERVED-OTHER-TOKENS", "server", what, hint)


def _lists(choice: Mapping[str, Any]) -> tuple[list[str], list[Any], list[Any]]:
    """Return tokens, their log-probabilities and the most likely ones of a completion. Raises `Declined` if it has none."""
    held = choice.get("logprobs")
    lists = [held.get(key) for key in ("tokens", "token_logprobs", "top_logprobs")] if isinstance(held, Mapping) else []
    if (
        not lists
        or not all(isinstance(each, list) for each in lists)
        or not len(lists[0]) == len(lists[1]) == len(lists[2])
    ):
        raise Declined("no logprobs with tokens, token_logprobs and top_logprobs")
    return lists[0], lists[1], lists[2]


def read_echo(choice: Mapping[str, Any], prompt: Prompt) -> Positions:
    """Return the positions of an echoed prompt: lists of texts, values and {text: value}, then those of what was generated.

    llama-cpp-python leaves out a leading BOS; the position after it is then not said.
    """
    texts, own, top = _lists(choice)
    tokens = prompt.tokens
    if len(texts) < len(tokens) - 1:
        raise Declined("no echo of the prompt") if len(texts) <= 1 else _truncated(len(texts), len(tokens))
    # Of the prompt as it is and without its first token, the one whose tokens are those of the answer.
    dropped = max((0, 1), key=lambda count: prompt.names.by_echo(texts, tokens[count:])[1])
    names, share = prompt.names.by_echo(texts, tokens[dropped:])
    if share < LEAST_NAMED:
        raise _other_tokens(f"echoes other tokens than were sent ({share:.0%} are the same)")
    if len(texts) < len(tokens) - dropped:
        raise _truncated(len(texts) + dropped, len(tokens))
    rows = zip(tokens[dropped:], own, top, strict=False)
    held: Positions = [
        _position(each or {}, token, names, value) if value is not None else None for token, value, each in rows
    ]
    return held[1 - dropped :]


def read_next(choice: Mapping[str, Any], prompt: Prompt, token: int) -> Position:
    """Return what a server says of the token after the prompt, of which `token` is the text's own.

    By ids (`content`: llama-server, mlx_lm.server), or by texts (`top_logprobs`: llama-cpp-python, vLLM, SGLang).
    """
    check_usage(choice, prompt)
    held = choice.get("logprobs")
    entries = held.get("content") if isinstance(held, Mapping) else None
    if isinstance(entries, list) and entries and isinstance(entries[0].get("top_logprobs"), list | tuple):
        top = entries[0]["top_logprobs"]
        if not all("id" in entry for entry in top):
            names = prompt.names.by_texts(entry["token"] for entry in top)
            return _position({entry["token"]: entry["logprob"] for entry in top}, token, names)
        values = {int(entry["id"]): entry["logprob"] for entry in top}
        return _position(values, token, {name: name for name in values})
    _, _, rows = _lists(choice)
    if not rows or not isinstance(rows[0], Mapping):
        raise Declined("no logprobs of the generated token")
    return _position(rows[0], token, prompt.names.by_texts(rows[0]))


@dataclass(frozen=True)
class Mode:
    """A way to ask: the keys of the request for `top` log-probabilities, and the reader of a whole window's answer.

    Without a reader every prefix is a request of its own, read by `read_next`. One that is `as_text` sends text in the place of ids.
    """

    name: str
    keys: Callable[[int], Mapping[str, Any]]
    read: Callable[[Mapping[str, Any], Prompt], Positions] | None = None
    as_text: bool = False


MODES: Mapping[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("prompt_logprobs", lambda top: {"prompt_logprobs": top}, read_prompt_logprobs),
        Mode("echo", lambda top: {"echo": True, "logprobs": top}, read_echo),
        Mode("echo_of_text", lambda top: {"echo": True, "logprobs": top}, read_echo, as_text=True),
        Mode("next_token", lambda top: {"logprobs": top}),
        Mode("next_token_of_text", lambda top: {"logprobs": True, "top_logprobs": min(top, MLX_MOST)}, as_text=True),
    )
}
