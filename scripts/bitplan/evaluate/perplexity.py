"""Perplexity and KL of a plan, computed block by block."""

from dataclasses import replace

from torch import Tensor

from bitplan.evaluate.scores import TokenScores, hidden_logits, nll_of, score
from bitplan.models.layers import ModelInfo
from bitplan.models.walk import StreamedModel
from bitplan.plans.apply import QuantizedWeights, apply_plan
from bitplan.plans.apply_embeddings import embedding_quantizer, output_matrix
from bitplan.plans.plan import Plan
from bitplan.reference.head import Head
from bitplan.reference.reference import Reference


def plan_hidden(model: StreamedModel, info: ModelInfo, plan: Plan, tokens: Tensor, weights: QuantizedWeights) -> Tensor:
    """Return the final hidden states (sequences, length, hidden) of the model under a plan."""
    return model.run(tokens, apply_plan(plan, info, weights), embedded=embedding_quantizer(plan, info, weights))


def head_under(head: Head, plan: Plan, info: ModelInfo, weights: QuantizedWeights) -> Head:
    """Return the head with the plan's output matrix; the given one if the plan does not quantize it."""
    matrix = output_matrix(head.matrix, plan, info, weights)
    return head if matrix is head.matrix else replace(head, matrix=matrix)


def score_plan(
    model: StreamedModel, info: ModelInfo, plan: Plan, reference: Reference, weights: QuantizedWeights
) -> TokenScores:
    """Return the scores of a plan against the reference."""
    hidden = plan_hidden(model, info, plan, reference.tokens, weights)
    head = reference.head.read(model.device)
    return score(reference, head, hidden_logits(hidden, head_under(head, plan, info, weights)))


def hidden_nll(tokens: Tensor, hidden: Tensor, head: Head) -> Tensor:
    """Return the NLL per token (sequences, length - 1) of final hidden states on `tokens` (sequences, length)."""
    return nll_of(tokens, len(head.matrix), hidden_logits(hidden, head))


def plan_nll(
    model: StreamedModel, info: ModelInfo, plan: Plan, reference: Reference, weights: QuantizedWeights
) -> Tensor:
    """Return the NLL per token (sequences, length - 1) of a plan."""
    hidden = plan_hidden(model, info, plan, reference.tokens, weights)
    return hidden_nll(reference.tokens, hidden, head_under(reference.head.read(model.device), plan, info, weights))
