"""How far a server's log-probabilities are from the plan's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.evaluate.scores import LogitsOf, hidden_logits, nll_of, row_slices
from bitplan.reference.head import Head
from bitplan.reference.reference import Reference
from bitplan.runtimes.served.modes import Position, Positions

LEAST_REST = 1e-9


@dataclass(frozen=True)
class Difference:
    """A position: |difference| of the own token's log-probabilities (None where it was not said), KL over what was returned, and whether
    the most likely tokens are the same (None where the server's has no id)."""

    own: float | None
    kl: float
    same_best: bool | None


def top_kl(ours: Tensor, served: Tensor) -> float:
    """Return KL(ours || served) in nats over some tokens, (k,) log-probabilities each, and all other tokens as one.

    KL = sum p ln(p / q) + (1 - P) ln((1 - P) / (1 - Q)) with P = sum p, Q = sum q: at most the KL over the whole vocabulary, because
    joining tokens loses information.
    """
    ours, served = ours.to(torch.float64), served.to(torch.float64)
    p = ours.exp()
    rest, rest_served = (max(LEAST_REST, 1 - value.exp().sum().item()) for value in (ours, served))
    joined = rest * (torch.tensor(rest).log() - torch.tensor(rest_served).log()).item()
    return max(0.0, (p * (ours - served)).sum().item() + joined)


def difference(position: Position, ours: Tensor, token: int) -> Difference:
    """Return how a server's position differs from our log-probabilities (vocabulary,) float32; `token` is the text's own.

    Raises `UserError` for token ids beyond the vocabulary.
    """
    ids = list(position.top)
    if ids and max(ids) >= len(ours):
        what = f"returns token {max(ids)}, the model has {len(ours)}"
        raise user_error("SERVED-OTHER-TOKENS", "server", what, "Check that --model is the model that is served")
    own = None if position.own is None else abs(position.own - ours[token].item())
    same = None if position.best is None else position.best == int(ours.argmax())
    return Difference(own, top_kl(ours[ids], torch.tensor([position.top[each] for each in ids])), same)


@torch.inference_mode()
def differences(served: Sequence[Positions], reference: Reference, logits_of: LogitsOf) -> Iterator[Difference]:
    """Yield the differences at all positions that the server said something of; `logits_of` gives our logits on the reference's tokens."""
    for window, rows in row_slices(reference.tokens, reference.head.vocabulary):
        ours = torch.log_softmax(logits_of(window, rows), dim=-1).cpu()
        targets = reference.tokens[window, 1:][rows].tolist()
        for position, row, token in zip(served[window][rows], ours, targets, strict=True):
            if position is not None:
                yield difference(position, row, token)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def summarize(found: Sequence[Difference]) -> dict[str, Any]:
    """Return the figures of a comparison; those of nothing are None.

    `mean_difference` and `max_difference` are of the text's own tokens, in nats; `top1_agreement` is of 0 to 1.
    """
    own = [each.own for each in found if each.own is not None]
    best = [float(each.same_best) for each in found if each.same_best is not None]
    return {
        "positions": len(found),
        "own_tokens": len(own),
        "mean_difference": _mean(own),
        "max_difference": max(own, default=None),
        "kl_top": _mean([each.kl for each in found]),
        "top1_agreement": _mean(best),
    }


@torch.inference_mode()
def plan_change(reference: Reference, head: Head, logits_of: LogitsOf) -> float:
    """Return the mean |difference| between a plan and the full-precision model, on the text's own tokens, in nats.

    `head` is the reference's. The figure says what a tolerance can tell apart: a server of the original would differ by so much.
    """
    tokens, vocabulary = reference.tokens, len(head.matrix)
    original = nll_of(tokens, vocabulary, hidden_logits(reference.hidden, head))
    return (nll_of(tokens, vocabulary, logits_of) - original).abs().mean().item()
