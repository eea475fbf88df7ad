"""Asks a server for the log-probabilities of windows of tokens, in the way that it knows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitplan.core.errors import UserError, user_error
from bitplan.runtimes.served.modes import MODES, Mode, Position, Positions, Prompt, check_usage, read_echo, read_next
from bitplan.runtimes.served.server import Declined, Server
from bitplan.runtimes.served.token_names import TokenNames

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE_TOKENS = 8
# Between two answers of one server about one position; a position too late differs by far more.
PROBE_TOLERANCE = 0.1


@dataclass(frozen=True)
class Question:
    """What stays the same in all requests: server, the model's name there, how many log-probabilities, and the tokenizer."""

    server: Server
    model: str
    top: int
    tokenizer: "PreTrainedTokenizerBase"
    names: TokenNames

    def _ask(self, prompt: Sequence[int] | str, mode: Mode) -> dict:
        fixed = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        return dict(self.server.complete({**fixed, **mode.keys(self.top)}))

    def _prompt(self, tokens: Sequence[int], mode: Mode) -> Sequence[int] | str | None:
        """Return tokens as a mode sends them; None where they go as text of which the tokenizer would make other tokens.

        A leading BOS is left to the server: whether it puts one there is seen from the number of tokens that it says it read.
        """
        if not mode.as_text:
            return list(tokens)
        own = list(tokens[1:] if tokens[0] == self.tokenizer.bos_token_id else tokens)
        text = self.tokenizer.decode(own)
        return text if text and self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids == own else None

    def next_token(self, tokens: Sequence[int], token: int, mode: Mode) -> Position | None:
        """Return what the server says of the token after some, of which `token` is the text's own.

        None where a mode that sends text cannot send these tokens. Raises `Declined` and `UserError`.
        """
        prompt = self._prompt(tokens, mode)
        return None if prompt is None else read_next(self._ask(prompt, mode), Prompt(tokens, self.names), token)

    def window(self, tokens: Sequence[int], mode: Mode) -> Positions:
        """Return the positions of a window (n tokens: n - 1 of them). Raises `Declined` and `UserError`."""
        if mode.read is None:
            return [self.next_token(tokens[:end], tokens[end], mode) for end in range(1, len(tokens))]
        prompt = self._prompt(tokens, mode)
        if prompt is None:
            return [None] * (len(tokens) - 1)
        choice, sent = self._ask(prompt, mode), Prompt(tokens, self.names)
        check_usage(choice, sent)
        return mode.read(choice, sent)

    def windows(self, tokens: Sequence[Sequence[int]], mode: Mode) -> Iterator[Positions]:
        """Yield the positions of one window after another. Raises `UserError` where the server stops answering as it did."""
        for number, window in enumerate(tokens):
            try:
                yield self.window(window, mode)
            except Declined as reason:
                where, what = f"{self.server.url}: window {number}", f"was not answered in mode {mode.name}: {reason}"
                raise user_error(
                    "SERVED-REFUSED", where, what, "Look into the server's log, or use --mode auto"
                ) from None

    def mode_for(self, window: Sequence[int]) -> Mode:
        """Return the first way that gets log-probabilities of a window's first tokens. Raises `UserError` if none does."""
        tokens, reasons = list(window[:PROBE_TOKENS]), []
        for mode in MODES.values():
            try:
                self._try(mode, tokens)
            except Declined as reason:
                reasons.append(f"{mode.name}: {reason}")
            else:
                return mode
        what = f"gives no log-probabilities ({'; '.join(reasons)})"
        hint = "docs/serving.md says which servers do, and with which flags"
        raise user_error("SERVED-NO-LOGPROBS", self.server.url, what, hint)

    def _try(self, mode: Mode, tokens: Sequence[int]) -> None:
        """Raise `Declined` where a way does not get log-probabilities of some tokens, `UserError` where it will not get those of more."""
        try:
            positions = self.window(tokens, mode)
        except UserError as error:
            if not mode.as_text:
                raise
            # As text the tokens may be read as others, with a BOS or without: a way that takes ids is not concerned.
            raise Declined(error.problems[0].what) from None
        if not any(positions):
            raise Declined("no position has log-probabilities")
        self._check_places(mode, tokens, positions)

    def _check_places(self, mode: Mode, tokens: Sequence[int], positions: Positions) -> None:
        """Raise `Declined` where a position of an echo is not what the same server says of the same token by itself.

        llama-cpp-python (0.3.36) without a leading BOS echoes every distribution one place late. The last position is compared whose
        most likely token has a name of its own; a server that says nothing of a token by itself is believed.
        """
        if mode.read is not read_echo:
            return
        for place, echoed in reversed(list(enumerate(positions, start=1))):
            alone = self._alone(tokens[:place], tokens[place]) if echoed and echoed.best is not None else None
            if alone is not None and alone.best is not None:
                if _differ(echoed, alone):
                    raise Declined("a position of the echo is not the server's own next token")
                return

    def _alone(self, tokens: Sequence[int], token: int) -> Position | None:
        try:
            return self.next_token(tokens, token, MODES["next_token"])
        except Declined:
            return None


def _differ(one: Position, other: Position) -> bool:
    """Return whether two answers about a position, each with its most likely token, are not the same but for rounding."""
    return one.best != other.best or abs(one.top[one.best] - other.top[other.best]) > PROBE_TOLERANCE
