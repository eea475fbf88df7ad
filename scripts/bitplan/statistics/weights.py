"""Moments of a weight matrix."""

import torch
from torch import Tensor


def weight_moments(weight: Tensor) -> dict[str, float]:
    """Return mean, largest |w|, population variance and kurtosis (3 for a Gaussian) of all values."""
    values = weight.to(torch.float32).flatten()
    mean = values.mean()
    centred = values - mean
    variance = centred.square().mean()
    kurtosis = centred.pow(4).mean() / variance.square() if variance > 0 else torch.tensor(float("nan"))
    return {
        "weight_mean": mean.item(),
        "weight_absmax": values.abs().max().item(),
        "weight_variance": variance.item(),
        "weight_kurtosis": kurtosis.item(),
    }
