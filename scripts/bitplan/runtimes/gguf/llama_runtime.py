"""A GGUF file in llama.cpp: logits of given tokens, generated text, and timings, through the runtime's low-level interface."""

import ctypes
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bitplan.core.errors import user_error
from bitplan.core.files import check_gguf

LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR


@cache
def _quiet() -> tuple:
    """Return the runtime with its log sent to a short list of errors, the list, and the callback, kept alive here."""
    import llama_cpp

    errors: deque[str] = deque(maxlen=4)

    @llama_cpp.llama_log_callback
    def keep(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        if level == LOG_ERROR and text.strip():
            errors.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp, errors, keep


def quiet_api():
    """Return the llama_cpp module; it logs nothing, and its errors are kept for `last_error`."""
    return _quiet()[0]


def last_error() -> str:
    """Return the runtime's first error since the last call, or "" when it gave none."""
    errors = _quiet()[1]
    first = errors[0] if errors else ""
    errors.clear()
    return first


@dataclass
class Runtime:
    """A loaded GGUF file with a context of `context` tokens, trained on up to `trained`. Made by `opened`."""

    api: object
    model: object
    state: object
    vocabulary: int
    context: int
    trained: int
    load_seconds: float

    def clear(self) -> None:
        """Forget all tokens."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.state), True)

    def decode(self, tokens: Sequence[int], position: int, all_logits: bool) -> None:
        """Run tokens that start at `position`. Raises RuntimeError when the runtime refuses."""
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), position + i, 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = all_logits or i == len(tokens) - 1
            code = self.api.llama_decode(self.state, batch)
        finally:
            self.api.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def logits(self, rows: int) -> np.ndarray:
        """Return a copy of the last decode's logits, (rows, vocabulary) float32."""
        pointer = self.api.llama_get_logits(self.state)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.vocabulary)).copy()

    def window_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the logits at every position of a window, (length, vocabulary) float32."""
        self.clear()
        self.decode(tokens, 0, all_logits=True)
        return self.logits(len(tokens))

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with BOS where the file asks for it."""
        return _tokenized(self.api, self.model, text)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return tokens as text."""
        return b"".join(map(self._piece, tokens)).decode(errors="replace")

    def _piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(256)
        size = self.api.llama_token_to_piece(
            self.api.llama_model_get_vocab(self.model), token, room, len(room), 0, False
        )
        return room.raw[: max(0, size)]

    def generate(self, prompt: Sequence[int], count: int) -> tuple[list[int], float, float]:
        """Return up to `count` greedy tokens after a prompt, the seconds for the prompt and the seconds for the tokens."""
        self.clear()
        vocab = self.api.llama_model_get_vocab(self.model)
        started = time.perf_counter()
        self.decode(prompt, 0, all_logits=False)
        token = int(self._last_logits().argmax())
        prompted = time.perf_counter()
        made = [token]
        while len(made) < count and not self.api.llama_vocab_is_eog(vocab, token):
            self.decode([token], len(prompt) + len(made) - 1, all_logits=False)
            token = int(self._last_logits().argmax())
            made.append(token)
        return made, prompted - started, time.perf_counter() - prompted

    def _last_logits(self) -> np.ndarray:
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.state, -1), shape=(self.vocabulary,))


def _tokenized(api, model, text: str) -> list[int]:
    """Return a text as tokens, with BOS and EOS where the file asks for them; special tokens in the text are recognized."""
    raw = text.encode()
    room = (ctypes.c_int32 * (len(raw) + 8))()
    count = api.llama_tokenize(api.llama_model_get_vocab(model), raw, len(raw), room, len(room), True, True)
    return list(room[:count])


@contextmanager
def _loaded(path: Path, **settings: bool) -> Iterator:
    """Yield llama.cpp's model of a file, and free it at the end. Raises `UserError` when llama.cpp does not load the file."""
    check_gguf(path)
    api = quiet_api()
    params = api.llama_model_default_params()
    for key, value in settings.items():
        setattr(params, key, value)
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        said = last_error() or "no reason given"
        raise user_error(
            "GGUF-NOT-LOADED", path, f"cannot be loaded by llama.cpp: {said}", "If it is truncated, export it again"
        )
    try:
        yield model
    finally:
        api.llama_model_free(model)


@contextmanager
def vocabulary(path: Path) -> Iterator[Callable[[str], list[int]]]:
    """Yield the tokenizer of a GGUF file, without its weights. Raises `UserError` when llama.cpp does not load it."""
    with _loaded(path, vocab_only=True) as model:
        yield lambda text: _tokenized(quiet_api(), model, text)


@contextmanager
def opened(path: Path, context: int, threads: int) -> Iterator[Runtime]:
    """Yield the runtime of a GGUF file, and free it at the end. Raises `UserError` when llama.cpp does not load the file."""
    api, started = quiet_api(), time.perf_counter()
    with _loaded(path) as model:
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        state = api.llama_init_from_model(model, params)
        if not state:
            raise user_error(
                "GGUF-NO-CONTEXT",
                path,
                f"cannot be opened by llama.cpp with a context of {context} tokens",
                "Use a smaller --length",
            )
        try:
            size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
            trained = int(api.llama_model_n_ctx_train(model))
            yield Runtime(api, model, state, size, context, trained, time.perf_counter() - started)
        finally:
            api.llama_free(state)
