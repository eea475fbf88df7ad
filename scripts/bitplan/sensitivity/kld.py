"""KL of many candidates against the full-precision model, the reference's probabilities computed once for all of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bitplan.evaluate.scores import divergence, hidden_logits, row_slices
from bitplan.reference.head import Head
from bitplan.reference.reference import Reference


@torch.inference_mode()
def kld_by_window(
    reference: Reference, finals: Sequence[Tensor], head: Head, heads: Sequence[Head] | None = None
) -> Tensor:
    """Return the mean KL(reference || candidate) per token of each window, (candidates, sequences) float64, in nats.

    finals: the candidates' final hidden states (sequences, length, hidden) on the reference's tokens; `head`: the reference's; `heads`:
    the candidates', where these are not the reference's.
    """
    used = heads or [head] * len(finals)
    sequences, length = reference.tokens.shape
    theirs, total = hidden_logits(reference.hidden, head), torch.zeros(len(finals), sequences, dtype=torch.float64)
    for window, rows in row_slices(reference.tokens, len(head.matrix)):
        logits = theirs(window, rows)
        known = torch.log_softmax(logits, dim=-1)
        probabilities = known.exp()
        for number, (final, own) in enumerate(zip(finals, used, strict=True)):
            change = hidden_logits(final, own)(window, rows) - logits
            total[number, window] += divergence(known, probabilities, change).sum(dtype=torch.float64)
    return total / (length - 1)


def mean_and_error(by_window: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over windows and its standard error; None for a single window."""
    values = torch.tensor(by_window, dtype=torch.float64)
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return values.mean().item(), error
