"""One run of a model, timed: what it is asked, and what is measured of it."""

from dataclasses import dataclass
from pathlib import Path

PROMPT_TOKENS = 256
PROMPTS = (
    "Once upon a time there was a",
    "One sunny morning Ada and Karl went to the",
    '"I lost it," whispered',
)


@dataclass(frozen=True)
class SpeedSettings:
    """Tokens to generate after each prompt, counted rounds, rounds to warm up, processor threads, the prompts.

    Rounds go on, up to `max_repeats`, until in the last `repeats` of them the fastest is at most `max_spread` times the slowest.
    """

    max_tokens: int = 200
    repeats: int = 5
    warmup: int = 1
    threads: int = 2
    prompts: tuple[str, ...] = PROMPTS
    max_repeats: int = 15
    max_spread: float = 1.3

    @property
    def budget(self) -> int:
        """Counted rounds at most."""
        return max(self.repeats, self.max_repeats)


@dataclass(frozen=True)
class Run:
    """One run of a file: seconds to load, tokens per second for a prompt and for generation, peak memory, the answers."""

    load_seconds: float
    prompt_tokens_per_second: float
    generation_tokens_per_second: float
    peak_memory_bytes: int
    answers: tuple[str, ...]


def peak_memory_bytes() -> int:
    """Return this process's peak resident memory."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
