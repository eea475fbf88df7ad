"""Servers on loopback with the answers of vLLM, SGLang, llama-server, mlx_lm.server and llama-cpp-python, and with what goes wrong there.

The shapes are those of the servers' own code: vLLM 0.32 (`prompt_logprobs`: {"id": {"logprob", "rank", "decoded_token"}}), SGLang (echo:
texts of tokens, each decoded by itself), llama-server (`logprobs.content[].top_logprobs[]` with ids, echo refused), mlx_lm.server 0.32
(prompts of text alone, logprobs true or false, at most 11).
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

# Log-probabilities (tokens, vocabulary) of the token after each token of a prompt.
LogProbs = Callable[[Sequence[int]], torch.Tensor]


class Refused(Exception):
    """An error answer: its status and what it says."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text
        super().__init__(text)


def ranked(row: torch.Tensor, count: int) -> list[tuple[int, float]]:
    values, ids = row.topk(min(count, len(row)))
    return list(zip(ids.tolist(), values.tolist(), strict=True))


@dataclass
class Model:
    """What is served: log-probabilities, a tokenizer, and how many tokens of a prompt are read (all for None)."""

    logprobs: LogProbs
    tokenizer: Any
    reads: int | None = None

    def rows(self, prompt: Sequence[int]) -> tuple[list[int], torch.Tensor]:
        tokens = list(prompt)[-self.reads :] if self.reads else list(prompt)
        return tokens, self.logprobs(tokens)

    def text(self, token: int) -> str:
        return self.tokenizer.decode([token])


def usage(tokens: Sequence[int]) -> dict[str, Any]:
    return {"prompt_tokens": len(tokens), "completion_tokens": 1}


def vllm(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    tokens, rows = model.rows(body["prompt"])
    top = body.get("prompt_logprobs")
    if top is not None and top > 20:
        raise Refused(400, f"Requested prompt logprobs of {top}, which is greater than max allowed: 20")
    choice = {"index": 0, "text": "", "logprobs": None, "prompt_logprobs": None, "finish_reason": "length"}
    if top is not None:
        said = [None]
        for token, row in zip(tokens[1:], rows, strict=False):
            held = {token: row[token].item()} | dict(ranked(row, top))
            rank = {each: place + 1 for place, (each, _) in enumerate(ranked(row, len(row)))}
            said.append(
                {str(i): {"logprob": v, "rank": rank[i], "decoded_token": model.text(i)} for i, v in held.items()}
            )
        choice["prompt_logprobs"] = said
    return {"choices": [choice], "usage": usage(tokens)}


def sglang(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    tokens, rows = model.rows(body["prompt"])
    top, echo = body.get("logprobs"), body.get("echo")
    if top is None:
        return {"choices": [{"index": 0, "text": "", "logprobs": None}], "usage": usage(tokens)}
    made = int(rows[-1].argmax())
    told = [*tokens, made] if echo else [made]
    before = [None, *rows[:-1], rows[-1]] if echo else [rows[-1]]
    lists = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [-1] * len(told)}
    for token, row in zip(told, before, strict=True):
        lists["tokens"].append(model.text(token))
        lists["token_logprobs"].append(None if row is None else row[token].item())
        lists["top_logprobs"].append(None if row is None else {model.text(i): v for i, v in ranked(row, top)})
    return {"choices": [{"index": 0, "text": "", "logprobs": lists}], "usage": usage(tokens)}


def entries(model: Model, row: torch.Tensor, top: int) -> dict[str, Any]:
    said = [{"id": i, "token": model.text(i), "logprob": v} for i, v in ranked(row, top)]
    return {"content": [{**said[0], "top_logprobs": said}]}


def llama_server(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    if body.get("echo"):
        raise Refused(400, "Only no echo is supported")
    tokens, rows = model.rows(body["prompt"])
    held = entries(model, rows[-1], body["logprobs"]) if body.get("logprobs") else None
    return {"choices": [{"index": 0, "text": "", "logprobs": held}], "usage": usage(tokens)}


def mlx_server(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(body.get("logprobs", False), bool):
        raise Refused(400, "logprobs must be of type bool")
    if not isinstance(body["prompt"], str):
        raise Refused(404, "TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]")
    tokens, rows = model.rows(model.tokenizer(body["prompt"]).input_ids)
    held = entries(model, rows[-1], body["top_logprobs"]) if body.get("top_logprobs", -1) > 0 else None
    return {"choices": [{"index": 0, **({"logprobs": held} if held else {})}], "usage": usage(tokens)}


def llama_cpp_python(model: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a `llama_cpp.Llama`, as its own server gives it: that package's server needs fastapi, which is not installed."""
    keys = {key: body[key] for key in ("prompt", "max_tokens", "temperature", "logprobs", "echo") if key in body}
    try:
        return json.loads(json.dumps(model.create_completion(**keys), default=float))
    except TypeError as error:
        # It echoes no prompt of token ids (0.3.36: "can only concatenate list"), which its own server answers with a 500.
        raise Refused(500, str(error)) from None


def ollama(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    """A server whose completions have no log-probabilities at all."""
    return {"choices": [{"index": 0, "text": "a"}], "usage": {}}


Kind = Callable[[Any, Mapping[str, Any]], dict[str, Any]]


@dataclass
class Served:
    """A running server: its address, the bodies and keys that came, and what it answers instead, {path: (status, bytes)}."""

    url: str
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    instead: dict[str, tuple[int, bytes]] = field(default_factory=dict)


@contextmanager
def serving(kind: Kind, model: Any, names: Sequence[str] = ("a-model",), key: str = "") -> Iterator[Served]:
    """A server of one kind on a free port of loopback, until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.reply({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.bodies.append(body)
            try:
                self.reply(kind(model, body))
            except Refused as error:
                self.send(error.status, json.dumps({"error": {"message": error.text}}).encode())

        def reply(self, content: dict) -> None:
            sent = self.headers.get("Authorization")
            served.keys.append(sent)
            if key and sent != f"Bearer {key}":
                self.send(401, json.dumps({"error": f"not {sent}"}).encode())
            else:
                self.send(*served.instead.get(self.path, (200, json.dumps(content).encode())))

        def send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
