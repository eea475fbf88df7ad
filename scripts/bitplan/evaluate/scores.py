"""Scores of a model on windows of tokens: NLL, and against the reference KL, top-1 agreement and the paired NLL difference.

Standard errors are those of the mean over windows, because the tokens of a window are not independent.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.models.devices import return_free_memory
from bitplan.reference.head import Head
from bitplan.reference.reference import Reference
from bitplan.reference.text import NO_BOS

# The head is converted to float32 once per this many logits (128 MiB): for a large vocabulary, conversion costs more than the product.
LOGIT_VALUES_AT_ONCE = 1 << 25
# Scoring processes a few MiB of logits at a time, which stay in the cache and need no new memory.
SCORED_VALUES_AT_ONCE = 1 << 20
# After a slice of at least so many logits, freed memory is returned to the system: scores that are kept lie between its pieces, so glibc cannot join them.
RETURNED_VALUES = 1 << 23
OVERFLOW = "Computing overflowed: use --dtype bf16 or fp32 in the place of fp16, or formats with more bits"
LARGEST_NLL = math.log(sys.float_info.max)
# logits_of(window, positions) -> (positions, vocabulary) float32
LogitsOf = Callable[[int, slice], Tensor]


@dataclass(frozen=True)
class TokenScores:
    """Scores per token, each (sequences, length - 1) float32, in nats; `kl` and `agree` compare with the reference.

    `bos` is "none" or the token id with which windows begin.
    """

    nll: Tensor
    reference_nll: Tensor
    kl: Tensor
    agree: Tensor
    bos: str = NO_BOS


def divergence(reference: Tensor, probabilities: Tensor, change: Tensor) -> Tensor:
    """Return KL(p || q) of rows in nats; `reference` is log p, `probabilities` p, `change` the change of logits from p to q.

    KL = ln sum p e^r with r = change - sum p change. Since sum p r = 0, KL = ln(1 + sum p (e^r - 1 - r)), a sum of
    non-negative terms. It is accurate even where q is so close to p that a difference of log-probabilities is mostly rounding.
    """
    centred = change - torch.linalg.vecdot(probabilities, change).unsqueeze(-1)
    terms = torch.expm1(centred).sub_(centred)
    kl = torch.log1p(torch.linalg.vecdot(probabilities, terms).clamp_(min=0))
    # e^r overflows float32 if a logit changes by more than 88; logsumexp does not.
    return kl if kl.isfinite().all() else torch.logsumexp(reference + centred, dim=-1)


def _score_rows(logits: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return nll, reference's nll, KL(reference || model) and top-1 agreement of rows (rows, vocabulary)."""
    ours, theirs = torch.log_softmax(logits, dim=-1), torch.log_softmax(reference, dim=-1)
    picked = targets.unsqueeze(-1)
    agree = (logits.argmax(dim=-1) == reference.argmax(dim=-1)).to(torch.float32)
    kl = divergence(theirs, theirs.exp(), logits - reference)
    return -ours.gather(-1, picked).squeeze(-1), -theirs.gather(-1, picked).squeeze(-1), kl, agree


def row_slices(tokens: Tensor, vocabulary: int) -> Iterator[tuple[int, slice]]:
    """Yield (window, positions) that cover every scored position of `tokens` (sequences, length), with a bounded number of logits each."""
    sequences, length = tokens.shape
    step = max(1, LOGIT_VALUES_AT_ONCE // vocabulary)
    for window in range(sequences):
        for start in range(0, length - 1, step):
            rows = slice(start, min(start + step, length - 1))
            yield window, rows
            if (rows.stop - rows.start) * vocabulary >= RETURNED_VALUES:
                return_free_memory()


def _by_rows(
    score_rows: Callable[..., tuple[Tensor, ...]], logits: Tensor, *others: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Yield `score_rows` of a few rows at a time of logits (rows, vocabulary) and of the tensors that belong to them."""
    step = max(1, SCORED_VALUES_AT_ONCE // logits.shape[1])
    for some in zip(*(values.split(step) for values in (logits, *others)), strict=True):
        yield score_rows(*some)


@torch.inference_mode()
def score(reference: Reference, head: Head, logits_of: LogitsOf) -> TokenScores:
    """Return the scores of the model whose logits `logits_of` returns, with a bounded number of logits in memory.

    `head` is the reference's. Logits of both are compared on the device of its matrix; scores are on the CPU.
    """
    device, parts = head.matrix.device, []
    theirs = hidden_logits(reference.hidden, head)
    for window, rows in row_slices(reference.tokens, len(head.matrix)):
        targets = reference.tokens[window, 1:][rows].to(device)
        parts.extend(_by_rows(_score_rows, logits_of(window, rows).to(device), theirs(window, rows), targets))
    shape = (reference.tokens.shape[0], -1)
    return TokenScores(*(torch.cat(column).view(shape).cpu() for column in zip(*parts, strict=True)), bos=reference.bos)


def _nll_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor]:
    """Return the NLL of rows (rows, vocabulary)."""
    return (torch.nn.functional.cross_entropy(logits, targets, reduction="none"),)


@torch.inference_mode()
def nll_of(tokens: Tensor, vocabulary: int, logits_of: LogitsOf) -> Tensor:
    """Return only the NLL of `tokens` (sequences, length), (sequences, length - 1): enough for a search on perplexity."""
    parts = []
    for window, rows in row_slices(tokens, vocabulary):
        logits = logits_of(window, rows)
        parts.extend(_by_rows(_nll_rows, logits, tokens[window, 1:][rows].to(logits.device)))
    return torch.cat([part for (part,) in parts]).view(tokens.shape[0], -1).cpu()


def hidden_logits(hidden: Tensor, head: Head) -> LogitsOf:
    """Return the logits function of final hidden states (sequences, length, hidden); logits are on the device of the head's matrix."""
    return lambda window, rows: head.logits(hidden[window, rows].to(head.matrix.device))


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """Return the mean of (sequences, positions) and its standard error over windows (None for a single window)."""
    by_window = values.to(torch.float64).mean(dim=1)
    error = by_window.std().item() / math.sqrt(len(by_window)) if len(by_window) > 1 else None
    return by_window.mean().item(), error


def summarize(scores: TokenScores) -> dict[str, Any]:
    """Return the content of a perplexity.json: counts, NLL and PPL with standard errors, and the comparison with the reference.

    Raises `UserError` if PPL or KL is not finite.
    """
    nll, nll_error = mean_and_error(scores.nll)
    kl, kl_error = mean_and_error(scores.kl)
    ratio, ratio_error = mean_and_error(scores.nll - scores.reference_nll)
    base = scores.reference_nll.to(torch.float64).mean().item()
    ppl = perplexity(nll)
    check_scores({"NLL": nll, "PPL": ppl, "full precision PPL": perplexity(base), "KL": kl})
    return {
        "bos": scores.bos,
        "windows": scores.nll.shape[0],
        "tokens": scores.nll.numel(),
        "nll": nll,
        "nll_error": nll_error,
        "ppl": ppl,
        "ppl_error": None if nll_error is None else ppl * nll_error,
        "base_ppl": perplexity(base),
        "kl_mean": kl,
        "kl_mean_error": kl_error,
        "kl_p99": torch.quantile(_sample(scores.kl), 0.99).item(),
        "top1_agreement": scores.agree.to(torch.float64).mean().item(),
        "ln_ppl_ratio": ratio,
        "ln_ppl_ratio_error": ratio_error,
    }


def check_scores(figures: Mapping[str, float]) -> None:
    """Raise `UserError` if a figure is not finite."""
    wrong = [f"{name} {value}" for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        beyond = all(name.endswith("PPL") and value > 0 for name, value in figures.items() if not math.isfinite(value))
        hint = "The mean NLL is over 709: check the weights" if beyond else OVERFLOW
        raise user_error("SCORES-NOT-FINITE", "scores", f"are not finite ({', '.join(wrong)})", hint)


def perplexity(nll: float) -> float:
    """Return exp of the mean NLL per token; infinity if that overflows."""
    return math.exp(nll) if nll < LARGEST_NLL else math.inf


def _sample(values: Tensor, most: int = 1 << 24) -> Tensor:
    """Return at most `most` evenly spaced values: torch.quantile does not accept more."""
    flat = values.flatten()
    return flat[:: -(-len(flat) // most)]
