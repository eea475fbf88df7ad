"""Perplexity and KL of a plan, walked block by block, and of a GGUF file, in llama.cpp."""

from pathlib import Path

import torch
from torch import Tensor

from bitplan.errors import user_error
from bitplan.evaluate.llama_runtime import Runtime, opened
from bitplan.evaluate.scores import TokenScores, hidden_logits, nll_of, score
from bitplan.evaluate.teacher import LogitsOf, Teacher
from bitplan.models.layers import ModelInfo
from bitplan.models.walk import StreamedModel
from bitplan.plan import Plan
from bitplan.quantized_walk import QuantizedWeights, applied


def plan_hidden(model: StreamedModel, info: ModelInfo, plan: Plan, tokens: Tensor, weights: QuantizedWeights) -> Tensor:
    """Return the final hidden states (sequences, length, hidden) of the model under a plan."""
    return model.run(tokens, applied(plan, info, weights))


def score_plan(
    model: StreamedModel, info: ModelInfo, plan: Plan, teacher: Teacher, weights: QuantizedWeights
) -> TokenScores:
    """Return the scores of a plan against the teacher."""
    return score(teacher, hidden_logits(teacher, plan_hidden(model, info, plan, teacher.tokens, weights)))


def plan_nll(model: StreamedModel, info: ModelInfo, plan: Plan, teacher: Teacher, weights: QuantizedWeights) -> Tensor:
    """Return the NLL per token (sequences, length - 1) of a plan."""
    return nll_of(teacher, hidden_logits(teacher, plan_hidden(model, info, plan, teacher.tokens, weights)))


def _runtime_logits(runtime: Runtime, tokens: Tensor) -> LogitsOf:
    def logits_of(start: int, stop: int) -> Tensor:
        return torch.stack([torch.from_numpy(runtime.window_logits(row)[:-1]) for row in tokens[start:stop].tolist()])

    return logits_of


def score_gguf(path: Path, teacher: Teacher, threads: int) -> TokenScores:
    """Return the scores of a GGUF file on the teacher's tokens. Raises `UserError` when its vocabulary is another."""
    with opened(path, teacher.tokens.shape[1], threads) as runtime:
        expected = teacher.head.matrix.shape[0]
        if runtime.vocabulary != expected:
            raise user_error(
                path, f"has {runtime.vocabulary} tokens, the model has {expected}", "It was made from another model"
            )
        return score(teacher, _runtime_logits(runtime, teacher.tokens))
