"""Names of formats by kind, and weights to quantize, that the tests of formats share."""

from pathlib import Path

import torch

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "formats.md"
SYMMETRIC = [f"int{bits}" for bits in range(2, 9)]
ASYMMETRIC = [f"int{bits}_asym" for bits in range(2, 9)]
BRAIN_SCALES = [f"{name}_bf16s" for name in (*SYMMETRIC, *ASYMMETRIC)]


def rows(values: list[float], block: int = 32) -> torch.Tensor:
    return torch.tensor([values + [0.0] * (-len(values) % block)])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
