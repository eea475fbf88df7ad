"""Alpha-Hill: the power-law exponent of a weight matrix's eigenvalue spectrum, by the Hill estimator.

Sources: TempBalance (Zhou et al. 2023), AlphaPruning (Lu et al. 2024). l_1 <= ... <= l_n are the eigenvalues of
W^T W, n = min(out, in). A high alpha means a light tail: a layer that learned less.
"""

import math

import torch
from torch import Tensor

FITS = ("hill", "xmin_mid")
SMALLEST_RATIO = 1e-12
NOISY_RATIO = 1e-4


def spectrum(weight: Tensor) -> Tensor:
    """Return the eigenvalues of W^T W in rising order, `(min(out, in),)`, from the smaller Gram matrix.

    This is twice as fast as the singular values of W. It uses float64 only if the part of the spectrum that alpha uses is
    so small that float32's noise, about 1e-7 of the largest eigenvalue, would matter.
    """
    eigenvalues = _gram_eigenvalues(weight.to(torch.float32))
    n = len(eigenvalues)
    lowest_used = min(n // 2, max(0, n - tail_length(n, "hill") - 1))
    if n < 2 or eigenvalues[lowest_used] > NOISY_RATIO * eigenvalues[-1]:
        return eigenvalues
    return _gram_eigenvalues(weight.to(torch.float64))


def _gram_eigenvalues(values: Tensor) -> Tensor:
    gram = values @ values.T if values.shape[0] <= values.shape[1] else values.T @ values
    return torch.linalg.eigvalsh(gram).clamp_(min=0)


def tail_length(n: int, fit: str) -> int:
    """Return k, the number of largest eigenvalues to fit: a tenth, at least 10 (`hill`), or the upper half (`xmin_mid`)."""
    return n - n // 2 if fit == "xmin_mid" else min(max(max(10, int(0.1 * n)), 1), n - 1)


def alpha_hill(eigenvalues: Tensor, fit: str = "hill") -> float:
    """Return alpha = 1 + k / sum_{i=1..k} ln(l_{n-i+1} / xmin) of rising eigenvalues.

    xmin is l_{n-k} with `hill`; with `xmin_mid` it is l_{n//2}, which is part of the tail. alpha does not depend on the
    matrix's scale. NaN for fewer than 2 eigenvalues, and if xmin is zero.
    """
    n = len(eigenvalues)
    if n < 2 or not bool(torch.isfinite(eigenvalues).all()):
        return math.nan
    k = tail_length(n, fit)
    tail = eigenvalues[n - k :].to(torch.float64)
    xmin = tail[0] if fit == "xmin_mid" else eigenvalues[n - k - 1].to(torch.float64)
    if xmin <= SMALLEST_RATIO * tail[-1]:
        return math.nan
    total = torch.log(tail / xmin).sum().item()
    return 1 + k / total if total > 0 else math.nan
