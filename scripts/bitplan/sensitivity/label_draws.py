"""Labels drawn from the model's own distribution p, and the gradient of their log-probability at the final hidden states.

The labels of different positions are independent, so E[(sum_t u_t . a_t)^2] = sum_t a_t' (diag(p_t) - p_t p_t') a_t for u_t = e_y - p_t and any
change a_t of the logits: twice KL(p || p') to second order, summed over positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitplan.evaluate.scores import LOGIT_VALUES_AT_ONCE
from bitplan.reference.head import VOCABULARY_SLICE, Head


def drawn_gradients(
    head: Head, final: Tensor, draws: int, generator: torch.Generator, others: Sequence[Head] = ()
) -> tuple[Tensor, Tensor]:
    """Return d sum_t log p_t(y_t) / d final for each draw of labels, (draws, positions, hidden) float32, and sums over other heads.

    final (positions, hidden): the final hidden states of one window; nothing follows the last position, whose gradient is 0. For each
    of the `others`, whose logits differ by a_t, the sum is sum_t u_t . a_t: (others, draws) float64.
    """
    found = torch.zeros(draws, *final.shape, dtype=torch.float32, device=final.device)
    products = torch.zeros(len(others), draws, dtype=torch.float64)
    step = max(1, LOGIT_VALUES_AT_ONCE // head.matrix.shape[0])
    for start in range(0, len(final) - 1, step):
        rows = slice(start, min(start + step, len(final) - 1))
        hidden = final[rows].to(head.matrix.device, torch.float32)
        logits = head.logits(hidden)
        known = logits.softmax(dim=-1)
        labels = torch.multinomial(known.cpu(), draws, replacement=True, generator=generator).to(known.device)
        found[:, rows] = _at_hidden(head, logits, known, labels).to(found.device)
        for number, other in enumerate(others):
            products[number] += _with_labels(other.logits(hidden) - logits, known, labels).cpu()
    return found, products


def _with_labels(change: Tensor, known: Tensor, labels: Tensor) -> Tensor:
    """Return sum_t (a_t[y_t] - p_t . a_t) for each draw, (draws,) float64, of changes and probabilities (rows, vocabulary)."""
    expected = torch.linalg.vecdot(known, change).unsqueeze(-1)
    return (change.gather(1, labels) - expected).sum(0, dtype=torch.float64)


def _at_hidden(head: Head, logits: Tensor, known: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient at the hidden states (draws, rows, hidden): s_y W_y - sum_v p_v s_v W_v, s the slope of each logit.

    What does not depend on the label is computed once for all draws.
    """
    slope = torch.full_like(logits, head.scale)
    if head.softcap is not None:
        slope *= 1 - (logits / head.softcap).square()
    parts = zip((known * slope).split(VOCABULARY_SLICE, dim=-1), head.matrix.split(VOCABULARY_SLICE), strict=True)
    expected = sum(weights @ part.to(torch.float32) for weights, part in parts)
    taken = slope.gather(1, labels).T.unsqueeze(-1)
    return taken * head.matrix[labels.T].to(torch.float32) - expected
