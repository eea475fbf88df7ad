"""KL of the token embedding, or of the output matrix, alone in a format. They are few: each is a walk of its own, or none.

An embedding is in use before block 0, so its candidate goes through the whole model; a tied one is scored with the quantized matrix
too. An output matrix of its own changes no state: the full-precision states are scored with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bitplan.evaluate.perplexity import head_under
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.fitting import fitting_formats
from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.apply_embeddings import embedding_quantizer
from bitplan.plans.plan import Plan, expand
from bitplan.reference.reference import Reference
from bitplan.sensitivity.gradients import as_block_runs
from bitplan.sensitivity.kld import kld_by_window


@dataclass(frozen=True)
class EmbeddingCandidate:
    """The embedding or the output matrix in a format, the plan that changes nothing else, and the formats that it stands for."""

    layer: Layer
    wq: str
    plan: Plan
    asked: tuple[str, ...]


def embedding_candidates(info: ModelInfo, formats: Sequence[str]) -> list[EmbeddingCandidate]:
    """Return the candidates in model order, those that fall to the same format once; a tied output matrix is none of its own.

    Raises `UserError` where a format is none of rows.
    """
    made = []
    for layer in (layer for layer in info.layers if layer.is_embedding and not layer.tied):
        for wq, asked in fitting_formats(formats, layer.shape[1]).items():
            entry = {"pattern": layer.name, "wq": wq, "embeddings": True}
            plan = expand({"overrides": [entry]}, info.layers, "--embeddings")
            made.append(EmbeddingCandidate(layer, wq, plan, asked))
    return made


def embedding_row(
    model: StreamedModel, info: ModelInfo, reference: Reference, candidate: EmbeddingCandidate
) -> dict[str, Any]:
    """Return the row of a candidate, with KL by window: what a layer's output tells is empty."""
    layer, plan, weights = candidate.layer, candidate.plan, QuantizedWeights(limit=0)
    final = _final(model, info, reference, plan, weights) if layer.token_table else reference.hidden
    head = reference.head.read(model.device)
    by_window = kld_by_window(reference, [final], head, [head_under(head, plan, info, weights)])[0]
    return row_of(candidate, by_window.tolist())


def row_of(candidate: EmbeddingCandidate, by_window: Sequence[float] | None = None) -> dict[str, Any]:
    """Return the row of a candidate with its KL by window, None where it was not measured."""
    layer = candidate.layer
    return {
        **{"layer": layer.name, "category": layer.category, "params": layer.params},
        **{"format": candidate.wq, "inputs": UNQUANTIZED, "group_size": None, "smoothed": ""},
        "bytes": math.ceil(FORMATS[candidate.wq].bits_of(layer.shape) / 8),
        **dict.fromkeys(("mse", "relative_mse", "weighted_error", "fisher", "alpha", "tokens")),
        "asked": " ".join(candidate.asked),
        "by_window": by_window,
    }


def _final(
    model: StreamedModel, info: ModelInfo, reference: Reference, plan: Plan, weights: QuantizedWeights
) -> Tensor:
    """Return the final hidden states of the model whose embedding alone is the plan's; windows are run as for the reference's."""

    def visit(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        return as_block_runs(block, forward, 1)[0](hidden)

    return model.run(reference.tokens, visit, embedded=embedding_quantizer(plan, info, weights))
