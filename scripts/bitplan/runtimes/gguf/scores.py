"""Perplexity and KL of a GGUF file, in llama.cpp."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.evaluate.scores import LogitsOf, TokenScores, score
from bitplan.reference.reference import Teacher
from bitplan.runtimes.gguf.llama_runtime import Runtime, opened


def _runtime_logits(runtime: Runtime, tokens: Tensor) -> LogitsOf:
    @lru_cache(maxsize=1)
    def logits(window: int) -> Tensor:
        return torch.from_numpy(runtime.window_logits(tokens[window].tolist()))

    return lambda window, rows: logits(window)[rows]


def score_gguf(path: Path, teacher: Teacher, threads: int) -> TokenScores:
    """Return the scores of a GGUF file on the teacher's tokens. Raises `UserError` when its vocabulary is another."""
    with opened(path, teacher.tokens.shape[1], threads) as runtime:
        expected = teacher.head.matrix.shape[0]
        if runtime.vocabulary != expected:
            what = f"has {runtime.vocabulary} tokens, the model has {expected}"
            raise user_error(path, what, "It was made from another model: give the file of this one")
        return score(teacher, _runtime_logits(runtime, teacher.tokens))
