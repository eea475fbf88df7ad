"""A timed run of a model: its prompts and its measurements."""

from collections.abc import Callable
from dataclasses import dataclass

PROMPT_TOKENS = 256
PROMPTS = (
    "Once upon a time there was a",
    "One sunny morning Ada and Karl went to the",
    '"I lost it," whispered',
)


@dataclass(frozen=True)
class SpeedSettings:
    """Tokens to generate per prompt, counted rounds, warm-up rounds, threads, and the prompts.

    Rounds are repeated, up to `max_repeats` and for `max_seconds`, until the fastest of the last `repeats` is at most `max_spread` times
    as fast as the slowest.
    """

    max_tokens: int = 200
    repeats: int = 5
    warmup: int = 1
    threads: int = 2
    prompts: tuple[str, ...] = PROMPTS
    max_repeats: int = 15
    max_spread: float = 1.3
    max_seconds: float = 60.0

    @property
    def budget(self) -> int:
        """The largest number of counted rounds."""
        return max(self.repeats, self.max_repeats)


@dataclass(frozen=True)
class Run:
    """One run of a file: load time, tokens per second for the prompt and for generation, peak memory, generated texts."""

    load_seconds: float
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    peak_memory_bytes: int
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """The tokens that a model continues, and the space that they have behind the prompt's text: "" or " "."""

    tokens: list[int]
    space: str


def tokens_of_prompt(prompt: str, tokenize: Callable[[str], list[int]]) -> Prompt:
    """Return a prompt's tokens; with the space after its last word where that takes no further token.

    Most vocabularies have the space before a word in the word's token. In one that has the space after it there, as in "a\u2581", a prompt
    without that space ends inside a word, which the model would complete: "a" to "available".
    """
    plain, spaced = tokenize(prompt), tokenize(f"{prompt} ")
    closed = len(spaced) <= len(plain) and spaced != plain
    return Prompt(spaced, " ") if closed else Prompt(plain, "")
