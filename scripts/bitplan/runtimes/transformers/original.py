"""The full-precision checkpoint in transformers, timed and asked like the GGUF files beside it."""

import time
from itertools import chain, cycle, islice
from pathlib import Path

from bitplan.core.memory import peak_memory_bytes
from bitplan.evaluate.timing import PROMPT_TOKENS, Run, SpeedSettings, tokens_of_prompt


def run_original(folder: Path, settings: SpeedSettings) -> Run:
    """Load a checkpoint in float32, time a prompt of 256 tokens and the greedy generation after each prompt."""
    import torch

    torch.set_num_threads(settings.threads)
    module, tokenizer, loaded = _loaded(folder)
    given = [tokens_of_prompt(prompt, lambda text: tokenizer(text).input_ids) for prompt in settings.prompts]
    prompts = [torch.tensor([prompt.tokens]) for prompt in given]
    words = chain.from_iterable(prompt[0].tolist() for prompt in prompts)
    long = torch.tensor([list(islice(cycle(words), PROMPT_TOKENS))])
    _generated(module, long[:, :1], 2)
    prompt_seconds, _, _ = _generated(module, long, 1)
    made = [_generated(module, prompt, settings.max_tokens) for prompt in prompts]
    # The first token of each answer belongs to the prompt's own pass, as with the files.
    tokens, seconds = sum(len(answer) - 1 for _, _, answer in made), sum(after for _, after, _ in made)
    answers = tuple(p.space + _after(tokenizer, p.tokens, a) for p, (_, _, a) in zip(given, made, strict=True))
    speed = tokens / seconds if tokens > 0 else 0.0
    return Run(loaded, PROMPT_TOKENS / prompt_seconds, speed, peak_memory_bytes(), answers)


def _loaded(folder: Path) -> tuple:
    """Return the model, its tokenizer and the seconds that loading both took.

    They are loaded twice, one after the other: transformers imports a family's code when it is first needed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bitplan.models.original import original_source

    with original_source(folder) as (source, arguments):

        def load() -> tuple:
            module = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **arguments).eval()
            return module, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

        load()
        started = time.perf_counter()
        module, tokenizer = load()
        return module, tokenizer, time.perf_counter() - started


class _Clock:
    """A streamer of transformers that notes when the prompt and each token come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _generated(module, prompt, count: int) -> tuple[float, float, list[int]]:
    """Return the seconds until the first token, those after it, and a greedy answer of at most `count` tokens."""
    clock = _Clock()
    answer = greedy(module, prompt, count, clock)
    asked, first, *_ = clock.times
    return first - asked, clock.times[-1] - first, answer


def greedy(module, prompt, count: int, streamer=None) -> list[int]:
    """Return the likeliest next tokens, at most `count`, after a prompt (1, length), whatever the checkpoint's settings."""
    import torch

    from bitplan.models.walk import check_tokens

    check_tokens(prompt, module.get_input_embeddings().weight.shape[0], "the model's embedding")
    # Without a mask, tokens equal to the padding would count as padding; files know no penalty for repetition.
    mask = torch.ones_like(prompt)
    plain = {"do_sample": False, "repetition_penalty": 1.0, "pad_token_id": 0}
    with torch.inference_mode():
        made = module.generate(prompt, attention_mask=mask, max_new_tokens=count, streamer=streamer, **plain)
    return made[0, prompt.shape[1] :].tolist()


def _after(tokenizer, prompt: list[int], answer: list[int]) -> str:
    """Return an answer as it stands after its prompt, with the space between them if there is one."""
    whole = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    return whole[len(tokenizer.decode(prompt, skip_special_tokens=True)) :]
