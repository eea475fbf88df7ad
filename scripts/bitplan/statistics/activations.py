"""Statistics of each layer's input on calibration text: mean |x|, mean x^2 and largest |x| of every column."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitplan.models.walk import Block, Forward, Visit


@dataclass
class InputStatistics:
    """Running sums over a layer's input tokens; each tensor is `(in,)` float64, on the device of the inputs: a copy to the processor for
    each batch would make a GPU wait."""

    tokens: int
    sum_abs: Tensor
    sum_squares: Tensor
    absmax: Tensor

    @classmethod
    def empty(cls, columns: int) -> "InputStatistics":
        """Return empty statistics."""
        return cls(0, *(torch.zeros(columns, dtype=torch.float64) for _ in range(3)))

    def add_(self, inputs: Tensor) -> None:
        """Add a batch of inputs `(..., in)`."""
        flat = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        sizes = flat.abs()
        self.tokens += len(flat)
        self.sum_abs = self.sum_abs.to(flat.device) + sizes.sum(0, dtype=torch.float64)
        self.sum_squares = self.sum_squares.to(flat.device) + flat.square().sum(0, dtype=torch.float64)
        self.absmax = torch.maximum(self.absmax.to(flat.device), sizes.amax(0).to(torch.float64))

    @property
    def mean_abs(self) -> Tensor:
        """mean |x| per column, on the processor."""
        return self.sum_abs.cpu() / max(1, self.tokens)

    @property
    def mean_square(self) -> Tensor:
        """mean x^2 per column, on the processor: the importance matrix."""
        return self.sum_squares.cpu() / max(1, self.tokens)


@contextmanager
def _watch(block: Block, into: dict[str, InputStatistics]) -> Iterator[None]:
    def watcher(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            into.setdefault(name, InputStatistics.empty(args[0].shape[-1])).add_(args[0])

        return hook

    hooks = [module.register_forward_pre_hook(watcher(name)) for name, module in block.layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def collect_inputs(into: dict[str, InputStatistics]) -> Visit:
    """Return a visitor that adds the statistics of every layer's input to `into`."""

    def visit(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        with _watch(block, into):
            return forward(hidden)

    return visit
