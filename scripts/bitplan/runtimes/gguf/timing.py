"""One timed run of a GGUF file in llama.cpp."""

from itertools import chain, cycle, islice
from pathlib import Path

from bitplan.core.memory import peak_memory_bytes
from bitplan.evaluate.timing import PROMPT_TOKENS, Run, SpeedSettings, tokens_of_prompt
from bitplan.runtimes.gguf.llama_runtime import opened


def run_once(path: Path, settings: SpeedSettings) -> Run:
    """Load a file, time a prompt of 256 tokens and the generation after each prompt, and return what was measured."""
    with opened(path, PROMPT_TOKENS + settings.max_tokens, settings.threads) as runtime:
        given = [tokens_of_prompt(prompt, runtime.tokenize) for prompt in settings.prompts]
        prompts = [prompt.tokens for prompt in given]
        # A model with learned positions has none past those it was trained on.
        room = min(runtime.context, runtime.trained)
        long = list(islice(cycle(chain.from_iterable(prompts)), min(PROMPT_TOKENS, room - 1)))
        # The first pass also reads the weights into memory and starts the threads.
        runtime.generate(long[:1], 1)
        _, prompt_seconds, _ = runtime.generate(long, 1)
        counts = [min(settings.max_tokens, room - len(prompt)) for prompt in prompts]
        made = [runtime.generate(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        generated, seconds = sum(len(tokens) - 1 for tokens, _, _ in made), sum(after for _, _, after in made)
        answers = tuple(p.space + runtime.text_of(tokens) for p, (tokens, _, _) in zip(given, made, strict=True))
        speed = generated / seconds if generated else 0.0
        return Run(runtime.load_seconds, len(long) / prompt_seconds, speed, peak_memory_bytes(), answers)
