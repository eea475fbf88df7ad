"""The codes of a block's layers tuned together against the block's full-precision output, by signed gradients (SignRound, 2309.05516).

Each weight has two neighbouring values on its grid, around where error feedback left it, and a position r between them: 0 at the lower
one, 1 at the upper one. It takes the upper value where r is over 1/2. r moves against the sign of the loss's gradient, averaged over
steps; the gradient passes the choice as if it were not there. Scales stay. SignRound begins at rounding to nearest and lets r move by
1/2; from error feedback on, with averaged gradients, a fifth of that keeps what it gains on text that it has not seen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitplan.models.walk import Forward
from bitplan.rounding.columns import FormatColumns

TOKENS_PER_STEP = 2048


@dataclass(frozen=True)
class TuningSettings:
    """How many steps are taken, how many tokens' windows each looks at (one window at least), and the seed of their choice.

    `reach` is the most that r can move in all: rates fall evenly to 0. `momentum` is the weight of earlier gradients in each step.
    """

    steps: int = 50
    tokens: int = TOKENS_PER_STEP
    seed: int = 0
    reach: float = 0.1
    momentum: float = 0.9

    def rate(self, step: int) -> float:
        """Return how far r moves in a step, counted from 0."""
        return 2 * self.reach * (1 - step / self.steps) / (self.steps + 1)


@dataclass
class Choice:
    """Two elements and their values for each weight of a layer, (in, out), and the position r between them."""

    columns: FormatColumns
    lower: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor
    position: Tensor

    def __post_init__(self) -> None:
        self.averaged = torch.zeros_like(self.position)

    @classmethod
    def of(cls, columns: FormatColumns) -> "Choice":
        """Return the choice that a layer has around the weights that its codes are nearest to."""
        found = [
            cls._of_span(columns, number, start) for number, start in enumerate(range(0, len(columns.elements), columns.span))
        ]  # fmt: skip
        return cls(columns, *(torch.cat(parts) for parts in zip(*found, strict=True)))

    @staticmethod
    def _of_span(columns: FormatColumns, number: int, start: int) -> tuple[Tensor, ...]:
        levels, stop = columns.levels[number], start + columns.span
        held, wanted = columns.elements[start:stop], columns.centers[start:stop]
        places = torch.arange(len(held), device=held.device)
        part = places // levels.run
        scaled = levels.scaled(wanted, places)
        other = levels.kind.beside(held, torch.where(scaled >= held, 1.0, -1.0), part)
        lower, upper = torch.minimum(held, other), torch.maximum(held, other)
        width = upper - lower
        position = torch.where(width > 0, (scaled - lower) / width, (held == upper).to(scaled)).clamp_(0, 1)
        # Exactly between both the nearest is what was taken.
        position = torch.where((position > 0.5) == (held == upper), position, (held == upper).to(scaled))
        return lower, upper, levels.values(lower, places), levels.values(upper, places), position

    def values(self) -> Tensor:
        """Return the values that are chosen, (in, out)."""
        return torch.where(self.position > 0.5, self.high, self.low)

    def move_(self, gradient: Tensor, rate: float, momentum: float) -> None:
        """Move against the sign of the averaged gradients of the loss (in, out) by the values."""
        self.averaged.mul_(momentum).add_(gradient * (self.high - self.low), alpha=1 - momentum)
        self.position.sub_(torch.sign(self.averaged), alpha=rate).clamp_(0, 1)

    def keep_(self) -> None:
        """Make the chosen elements those of the columns."""
        self.columns.elements.copy_(torch.where(self.position > 0.5, self.upper, self.lower))


def tune_(
    modules: Mapping[str, nn.Module],
    found: Mapping[str, FormatColumns],
    hidden: Tensor,
    target: Tensor,
    forward: Forward,
    settings: TuningSettings,
) -> tuple[float, float]:
    """Tune the elements of layers in place; returns the block's error over all windows before and after.

    found: what error feedback has found for each layer; hidden, target (sequences, length, hidden): what the block gets, and the
    full-precision output. Nothing is kept where the error is not lower. The modules are left with weights that are not the layers'.
    """
    choices = {name: Choice.of(columns) for name, columns in found.items()}
    with torch.no_grad():
        weights = {name: _weight_(modules[name], choice.values()) for name, choice in choices.items()}
        before = _error(hidden, target, forward)
    for step, chosen in enumerate(_batches(len(hidden), hidden.shape[1], settings)):
        loss = error_of(forward(hidden[chosen]), target[chosen])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, choice), gradient in zip(choices.items(), gradients, strict=True):
                choice.move_(_columns_first(modules[name], gradient), settings.rate(step), settings.momentum)
                weights[name].copy_(_columns_first(modules[name], choice.values()))
    with torch.no_grad():
        after = _error(hidden, target, forward)
    if after < before:
        for choice in choices.values():
            choice.keep_()
    return before, after


def _columns_first(module: nn.Module, values: Tensor) -> Tensor:
    """Return values between (in, out) and the layout of a module's weight; its own inverse."""
    return values.T if isinstance(module, nn.Linear) else values


def _weight_(module: nn.Module, values: Tensor) -> nn.Parameter:
    """Give a module a weight of its own with values (in, out), by which a loss has gradients."""
    kept = module.weight
    held = _columns_first(module, values).to(kept).contiguous().clone()
    module.weight = nn.Parameter(held, requires_grad=True)
    return module.weight


def _batches(sequences: int, length: int, settings: TuningSettings) -> Iterator[Tensor]:
    """Yield for each step the windows that it looks at, (n,) int64; all are seen before one is seen again."""
    count, generator = max(1, settings.tokens // length), torch.Generator().manual_seed(settings.seed)
    rest = torch.empty(0, dtype=torch.int64)
    for _ in range(settings.steps):
        while len(rest) < min(count, sequences):
            rest = torch.cat([rest, torch.randperm(sequences, generator=generator)])
        yield rest[:count]
        rest = rest[count:]


def error_of(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean over tokens of the squared error of outputs (..., hidden), in shares of the target's squares of that token.

    The next block begins with a norm: an error counts by the size of the token's own state, which a few tokens have very large.
    """
    squares = target.square().mean(-1).clamp(min=torch.finfo(target.dtype).tiny)
    return ((outputs - target).square().mean(-1) / squares).mean()


def _error(hidden: Tensor, target: Tensor, forward: Forward) -> float:
    """Return `error_of` a block's outputs over all windows."""
    return error_of(forward(hidden), target).item()
