"""Perplexity and KL of a plan, walked block by block."""

from torch import Tensor

from bitplan.evaluate.scores import TokenScores, hidden_logits, nll_of, score
from bitplan.evaluate.teacher import Teacher
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


def hidden_nll(teacher: Teacher, hidden: Tensor) -> Tensor:
    """Return the NLL per token (sequences, length - 1) of final hidden states on the teacher's tokens."""
    return nll_of(teacher, hidden_logits(teacher, hidden))


def plan_nll(model: StreamedModel, info: ModelInfo, plan: Plan, teacher: Teacher, weights: QuantizedWeights) -> Tensor:
    """Return the NLL per token (sequences, length - 1) of a plan."""
    return hidden_nll(teacher, plan_hidden(model, info, plan, teacher.tokens, weights))
