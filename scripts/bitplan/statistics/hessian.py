"""The second moments of a layer's input: H = 2/N sum x x^T, and mean |x|, mean and variance of every column, over N tokens.

Batches are merged by the formulas of Chan, Golub and LeVeque (1979), so their sizes and order do not matter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitplan.models.walk import Block

COLUMNS_AT_ONCE = 1024


@dataclass
class InputMoments:
    """Moments over the tokens seen so far; `gram` (in, in) is sum x x^T, the columns (in,) are float64."""

    tokens: int
    gram: Tensor
    sum_abs: Tensor
    mean: Tensor
    sum_squared_deviations: Tensor

    @classmethod
    def empty(cls, columns: int, device: torch.device, dtype: torch.dtype = torch.float32) -> "InputMoments":
        """Return empty moments; `dtype` is that of the Gram matrix."""
        by_column = (torch.zeros(columns, dtype=torch.float64, device=device) for _ in range(3))
        return cls(0, torch.zeros(columns, columns, dtype=dtype, device=device), *by_column)

    def add_(self, inputs: Tensor) -> None:
        """Add a batch of inputs (..., in)."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).to(self.gram)
        if not len(flat):
            return
        self.gram.addmm_(flat.T, flat)
        # Some columns at a time: in double precision all would take three times as much as the inputs.
        for start in range(0, flat.shape[1], COLUMNS_AT_ONCE):
            self._add_columns_(slice(start, start + COLUMNS_AT_ONCE), flat)
        self.tokens += len(flat)

    def _add_columns_(self, some: slice, flat: Tensor) -> None:
        wide = flat[:, some].to(torch.float64)
        self.sum_abs[some] += wide.abs().sum(0)
        mean = wide.mean(0)
        total, shift = self.tokens + len(flat), mean - self.mean[some]
        within = (wide - mean).square_().sum(0)
        self.sum_squared_deviations[some] += within + shift.square() * (self.tokens * len(flat) / total)
        self.mean[some] += shift * (len(flat) / total)

    @property
    def hessian(self) -> Tensor:
        """H = 2/N sum x x^T, (in, in); zeros before the first token."""
        return self.gram * (2.0 / max(1, self.tokens))

    @property
    def mean_abs(self) -> Tensor:
        """mean |x| of every column, (in,) float64."""
        return self.sum_abs / max(1, self.tokens)

    @property
    def variance(self) -> Tensor:
        """Variance of every column over the tokens, (in,) float64."""
        return self.sum_squared_deviations / max(1, self.tokens)


@dataclass
class CrossMoments:
    """The sums of (x' - x) x^T over the two halves of a text, (in, in) each: x what a layer reads, x' what it reads in the reference model.

    `squares` (in,) float64 are the sums of squares of x over both.
    """

    tokens: list[int]
    grams: tuple[Tensor, Tensor]
    squares: Tensor

    @classmethod
    def empty(cls, columns: int, device: torch.device, dtype: torch.dtype = torch.float32) -> "CrossMoments":
        """Return the moments of no token; `dtype` is that of the sums over the halves."""
        grams = tuple(torch.zeros(columns, columns, dtype=dtype, device=device) for _ in range(2))
        return cls([0, 0], grams, torch.zeros(columns, dtype=torch.float64, device=device))

    def add_(self, inputs: Tensor, reference: Tensor, half: int) -> None:
        """Count inputs (..., in), and the reference model's of the same tokens, in half 0 or 1."""
        flat, wide = (each.detach().reshape(-1, each.shape[-1]).to(self.grams[half]) for each in (inputs, reference))
        self.grams[half].addmm_((wide - flat).T, flat)
        self.squares += flat.square().sum(0, dtype=torch.float64)
        self.tokens[half] += len(flat)

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of H of the same tokens, (in,)."""
        return (self.squares * (2.0 / max(1, sum(self.tokens)))).to(self.grams[0].dtype)

    @property
    def matrix(self) -> Tensor:
        """2/N sum (x' - x) x^T of all tokens, (in, in), in the scale of `InputMoments.hessian`."""
        return (self.grams[0] + self.grams[1]) * (2.0 / max(1, sum(self.tokens)))


@contextmanager
def inputs_of(block: Block) -> Iterator[dict[str, Tensor]]:
    """Yield {layer: the input of its last call}, filled while the block runs inside the context."""
    seen: dict[str, Tensor] = {}

    def noting(layer: str):
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[layer] = args[0]

        return note

    hooks = [module.register_forward_pre_hook(noting(name)) for name, module in block.layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class _SharedMoments:
    """Hooks that add each input once: layers that read the same tensor (q, k and v) share its moments."""

    def __init__(self) -> None:
        self.by_layer: dict[str, InputMoments] = {}
        self._last: tuple[Tensor, InputMoments] | None = None
        self._owner: set[str] = set()

    def hook(self, layer: str):
        def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._count_(layer, args[0])

        return count

    def _count_(self, layer: str, inputs: Tensor) -> None:
        if layer not in self.by_layer and self._last and self._last[0] is inputs:
            self.by_layer[layer] = self._last[1]
        if layer not in self.by_layer:
            self.by_layer[layer] = InputMoments.empty(inputs.shape[-1], inputs.device)
            self._owner.add(layer)
        if layer in self._owner:
            self.by_layer[layer].add_(inputs)
            self._last = (inputs, self.by_layer[layer])


@contextmanager
def collect_moments(block: Block) -> Iterator[dict[str, InputMoments]]:
    """Yield {layer: moments of its input}, filled while the block runs inside the context; a layer without tokens is absent."""
    seen = _SharedMoments()
    hooks = [module.register_forward_pre_hook(seen.hook(name)) for name, module in block.layers.items()]
    try:
        yield seen.by_layer
    finally:
        for hook in hooks:
            hook.remove()
