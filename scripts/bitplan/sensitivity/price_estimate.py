"""From sums along the labels to prices: an unbiased estimate with much noise, and one with little noise whose bias it corrects.

The square of a window's whole sum, (sum_t x_t)^2 with x_t = g_t . dY_t, has the right mean and the relative variance 2 of a squared normal number. The
sum of x_t x_u over tokens that are near each other, `near`, leaves out far interactions, and its noise, that of as many products as there are spans.
So a layer's prices are those of `near`, times e^(w r): r = mean over the layer's choices of ln(whole / near), drawn towards 0 by w = t / (t + s), s its
variance, t = max(EXPECTED^2, r^2 - CERTAIN^2 s) (in the manner of empirical Bayes; Efron and Morris 1973). A ratio that the noise explains is mostly left
out; one that it does not, as of keys, whose common shift the softmax undoes, is kept.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

# Tokens of a span: interactions within it and with the next one are near.
SPAN = 32
# Standard deviation of ln(whole / near) between layers, and how many standard errors of one are taken for noise.
EXPECTED, CERTAIN = 0.05, 2


def near(products: Tensor) -> Tensor:
    """Return sum x_t x_u over tokens of one span or of neighbouring ones, of products x (..., tokens): float64 (...)."""
    wide = products.to(torch.float64)
    spans = torch.nn.functional.pad(wide, (0, -wide.shape[-1] % SPAN)).unflatten(-1, (-1, SPAN)).sum(-1)
    return spans.square().sum(-1) + 2 * (spans[..., 1:] * spans[..., :-1]).sum(-1)


def window_prices(whole: Tensor, near: Tensor, kinds: Sequence[object], scored: int) -> Tensor:
    """Return the price of each choice in each window, (choices, windows) float64, in nats per token.

    whole, near (choices, draws, windows): (sum_t x_t)^2 and the near part of it; choices of one of the `kinds` (choices,) share their
    correction; scored: tokens of a window that are followed by one.
    """
    found = torch.zeros(whole.shape[0], whole.shape[2], dtype=torch.float64)
    for rows in _rows_of_kinds(kinds):
        moved = [row for row in rows if whole[row].any()]
        if moved:
            found[moved] = _corrected(whole[moved], near[moved])
    return found / (2 * scored)


def _rows_of_kinds(kinds: Iterable[object]) -> Iterator[list[int]]:
    rows: dict[object, list[int]] = {}
    for row, kind in enumerate(kinds):
        rows.setdefault(kind, []).append(row)
    yield from rows.values()


def _corrected(whole: Tensor, near: Tensor) -> Tensor:
    """Return estimates (choices, windows) whose mean over windows is near e^(w r), and which vary as that does with a window's draws."""
    means = [values.mean((1, 2), keepdim=True) for values in (whole, near)]
    if (means[1] <= 0).any():
        return whole.mean(1)
    shares = [values / mean for values, mean in zip((whole, near), means, strict=True)]
    ratio = (means[0] / means[1]).log().mean()
    weight = _weight(ratio, (shares[0] - shares[1]).mean(0))
    by_window = [share.mean(1) for share in shares]
    return (means[1] * (weight * ratio).exp()).squeeze(-1) * (weight * by_window[0] + (1 - weight) * by_window[1])


def _weight(ratio: Tensor, influences: Tensor) -> Tensor:
    """Return w of a ratio, from how much each of the draws (draws, windows) moves it; 1 for a single draw of a single window."""
    if influences.numel() < 2:
        return torch.ones_like(ratio)
    noise = influences.var() / influences.numel()
    spread = torch.clamp(ratio.square() - CERTAIN**2 * noise, min=EXPECTED**2)
    return spread / (spread + noise)
