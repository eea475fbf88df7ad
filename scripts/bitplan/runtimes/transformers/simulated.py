"""A plan in torch beside the full-precision model: what both say, and how far apart they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bitplan.evaluate.timing import PROMPTS, tokens_of_prompt
from bitplan.runtimes.transformers.original import greedy


def answers(module: nn.Module, folder: Path, prompts: Sequence[str] | None, count: int) -> dict[str, str]:
    """Return {prompt: greedy answer of at most `count` tokens} of a transformers model with the tokenizer of `folder`."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, said = AutoTokenizer.from_pretrained(folder, trust_remote_code=False), {}
    for prompt in prompts or PROMPTS:
        given = tokens_of_prompt(prompt, lambda text: tokenizer(text).input_ids)
        tokens = torch.tensor([given.tokens], device=next(module.parameters()).device)
        said[prompt] = tokenizer.decode(greedy(module, tokens, count), skip_special_tokens=True)
    return said


def print_comparison(scores: Mapping[str, Any], said: Mapping[str, Mapping[str, str]]) -> None:
    """Print perplexities, KL and agreement, then for every prompt what each model says."""
    change = 100 * (scores["ppl"] / scores["base_ppl"] - 1)
    print(f"perplexity {scores['base_ppl']:.4f} -> {scores['ppl']:.4f} ({change:+.2f} %) on {scores['tokens']} tokens")
    agree = 100 * scores["top1_agreement"]
    print(f"KL {scores['kl_mean']:.6f} nats per token, top-1 agreement {agree:.2f} %")
    for prompt in next(iter(said.values())):
        print(f"\n{prompt}")
        for name, made in said.items():
            print(f"  {name:<15} {' '.join(made[prompt].split())}")
