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
    """Tokens to generate after each prompt, counted rounds, rounds to warm up, processor threads, the prompts."""

    max_tokens: int = 200
    repeats: int = 5
    warmup: int = 1
    threads: int = 2
    prompts: tuple[str, ...] = PROMPTS


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
