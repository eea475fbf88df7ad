"""The gradient of a loss at the outputs of a block's layers, by autograd through that block alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitplan.models.walk import Block, Forward
from bitplan.sensitivity.layer_calls import LayerCall, calls_of


@dataclass(frozen=True)
class OutputGradients:
    """By layer, windows of the gradient at its output, (tokens, out) float32, and over how many tokens the loss is a sum."""

    windows: Mapping[str, Sequence[Tensor]]
    scored: int


def gradient_of_inputs(forward: Forward, hidden: Tensor, gradient: Tensor, step: int) -> Tensor:
    """Return the gradient at a block's input (sequences, length, hidden), of the one at its output; `step` sequences at a time."""
    parts = zip(hidden.split(step), gradient.split(step), strict=True)
    return torch.cat([_backward(forward, part, given, [])[0] for part, given in parts])


def gradient_of_outputs(
    block: Block, forward: Forward, hidden: Tensor, gradient: Tensor, step: int, wanted: int
) -> dict[str, list[Tensor]]:
    """Return the gradient at each layer's output, as windows that hold the tokens which `observed` keeps of its input.

    hidden, gradient (sequences, length, hidden): the block's input and the gradient at its output.
    """
    kept: dict[str, list[Tensor]] = {}
    for part, given in zip(hidden.split(step), gradient.split(step), strict=True):
        if all(_tokens(kept.get(name, ())) >= wanted for name in block.layers):
            break
        with calls_of(block, block.layers) as seen:
            _, *found = _backward(forward, part, given, seen)
        for call, values in zip(seen, found, strict=True):
            if _tokens(kept.get(call.name, ())) < wanted:
                windows = list(values) if values.dim() == 3 else [values]
                kept.setdefault(call.name, []).extend(window.to(torch.float32) for window in windows)
    return {name: _cut(windows, wanted) for name, windows in kept.items()}


def _backward(forward: Forward, hidden: Tensor, gradient: Tensor, seen: Sequence[LayerCall]) -> tuple[Tensor, ...]:
    """Return the gradients at the input and at the outputs that `seen` holds once the block has run; 0 for what the output ignores."""
    with torch.enable_grad():
        given = hidden.detach().clone().requires_grad_()
        output = forward(given)
        wanted = [given, *(call.made for call in seen)]
        found = torch.autograd.grad(output, wanted, gradient.to(output.dtype), allow_unused=True)
    return tuple(torch.zeros_like(tensor) if part is None else part for tensor, part in zip(wanted, found, strict=True))


def _tokens(windows: Sequence[Tensor]) -> int:
    return sum(map(len, windows))


def _cut(windows: Sequence[Tensor], wanted: int) -> list[Tensor]:
    """Return the first windows that hold `wanted` tokens, as `BlockInputs.cut_` keeps the inputs."""
    lengths = torch.tensor([len(window) for window in windows]).cumsum(0)
    return list(windows[: int((lengths < wanted).sum()) + 1])
