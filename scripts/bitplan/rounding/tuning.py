"""Tunes the codes of a block's layers together towards the block's full-precision output, by signed gradients (SignRound, 2309.05516).

Each weight has two adjacent values on its grid, around the result of error feedback, and a position r between them: 0 at the lower
one, 1 at the upper one. It takes the upper value if r is above 1/2. r moves against the loss's gradient, averaged over steps, with a
straight-through estimator. Scales are fixed. SignRound starts from rounding to nearest, moves by the sign of the gradient and lets r
move by 1/2. Starting from error feedback with averaged gradients, a fifth of that generalizes better to other text; and so do steps that
are shorter where the gradients of different windows disagree (the mean over the root mean square, as in Adam, 1412.6980).
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
    """The number of steps, the tokens per step (at least one window), and the seed that chooses windows.

    `reach` is the largest total movement of r: rates fall linearly to 0. `momentum` is the weight of earlier gradients.
    """

    steps: int = 50
    tokens: int = TOKENS_PER_STEP
    seed: int = 0
    reach: float = 0.1
    momentum: float = 0.9

    def rate(self, step: int) -> float:
        """Return how far r moves in a step (the first is 0)."""
        return 2 * self.reach * (1 - step / self.steps) / (self.steps + 1)


@dataclass
class Choice:
    """The two adjacent elements of each weight of a layer, their values, and the position r between them, all (in, out)."""

    columns: FormatColumns
    lower: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor
    position: Tensor

    def __post_init__(self) -> None:
        self.averaged, self.squares = torch.zeros_like(self.position), torch.zeros_like(self.position)

    @classmethod
    def of(cls, columns: FormatColumns) -> "Choice":
        """Return the choice between the elements on both sides of a layer's centers."""
        spans = [
            cls._of_span(columns, number, start) for number, start in enumerate(range(0, len(columns.elements), columns.span))
        ]  # fmt: skip
        return cls(columns, *(torch.cat(parts) for parts in zip(*spans, strict=True)))

    @staticmethod
    def _of_span(columns: FormatColumns, number: int, start: int) -> tuple[Tensor, ...]:
        levels, stop = columns.levels[number], start + columns.span
        elements, centers = columns.elements[start:stop], columns.centers[start:stop]
        places = torch.arange(len(elements), device=elements.device)
        part = places // levels.run
        scaled = levels.scaled(centers, places)
        other = levels.kind.beside(elements, torch.where(scaled >= elements, 1.0, -1.0), part)
        lower, upper = torch.minimum(elements, other), torch.maximum(elements, other)
        width = upper - lower
        position = torch.where(width > 0, (scaled - lower) / width, (elements == upper).to(scaled)).clamp_(0, 1)
        # On a tie, r stays on the side of the current element.
        position = torch.where((position > 0.5) == (elements == upper), position, (elements == upper).to(scaled))
        return lower, upper, levels.values(lower, places), levels.values(upper, places), position

    def values(self) -> Tensor:
        """Return the chosen values, (in, out)."""
        return torch.where(self.position > 0.5, self.high, self.low)

    def move_(self, gradient: Tensor, rate: float, momentum: float, step: int) -> None:
        """Move r by at most `rate` against the averaged gradient; `gradient` (in, out) is the loss's gradient for the values.

        A move is rate x mean / root mean square of the gradients of the steps so far, each weighted by `momentum` to the power of its
        age: gradients that agree move r by the whole rate, those that are noise by little.
        """
        scaled, kept = gradient * (self.high - self.low), 1 - momentum ** (step + 1)
        self.averaged.mul_(momentum).add_(scaled, alpha=1 - momentum)
        self.squares.mul_(momentum).addcmul_(scaled, scaled, value=1 - momentum)
        size = (self.squares / kept).sqrt_().clamp_(min=torch.finfo(scaled.dtype).tiny)
        self.position.sub_((self.averaged / kept / size).clamp_(-1, 1), alpha=rate).clamp_(0, 1)

    def keep_(self) -> None:
        """Store the chosen elements in the columns."""
        self.columns.elements.copy_(torch.where(self.position > 0.5, self.upper, self.lower))


def tune_(
    modules: Mapping[str, nn.Module],
    by_layer: Mapping[str, FormatColumns],
    hidden: Tensor,
    target: Tensor,
    forward: Forward,
    settings: TuningSettings,
) -> tuple[float, float]:
    """Tune the elements of layers in place. Returns the block's error over all windows before and after.

    by_layer: the columns of each layer after error feedback; hidden, target (sequences, length, hidden): the block's input and its
    full-precision output. If the error does not fall, or there is nothing to tune, the elements are unchanged. The modules are left with temporary weights.
    """
    choices = {name: Choice.of(columns) for name, columns in by_layer.items()}
    with torch.no_grad():
        weights = {name: _weight_(modules[name], choice.values()) for name, choice in choices.items()}
        before = _error(hidden, target, forward)
    if not choices:
        return before, before
    for step, chosen in enumerate(_batches(len(hidden), hidden.shape[1], settings)):
        loss = error_of(forward(hidden[chosen]), target[chosen])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, choice), gradient in zip(choices.items(), gradients, strict=True):
                choice.move_(_columns_first(modules[name], gradient), settings.rate(step), settings.momentum, step)
                weights[name].copy_(_columns_first(modules[name], choice.values()))
    with torch.no_grad():
        after = _error(hidden, target, forward)
    if after < before:
        for choice in choices.values():
            choice.keep_()
    return before, after


def _columns_first(module: nn.Module, values: Tensor) -> Tensor:
    """Convert values between (in, out) and the layout of a module's weight; the function is its own inverse."""
    return values.T if isinstance(module, nn.Linear) else values


def _weight_(module: nn.Module, values: Tensor) -> nn.Parameter:
    """Set a new weight with values (in, out) in a module, for which gradients can be computed."""
    old = module.weight
    new = _columns_first(module, values).to(old).contiguous().clone()
    module.weight = nn.Parameter(new, requires_grad=True)
    return module.weight


def _batches(sequences: int, length: int, settings: TuningSettings) -> Iterator[Tensor]:
    """Yield the indices of each step's windows, (n,) int64; no window repeats before all were used."""
    count, generator = max(1, settings.tokens // length), torch.Generator().manual_seed(settings.seed)
    rest = torch.empty(0, dtype=torch.int64)
    for _ in range(settings.steps):
        while len(rest) < min(count, sequences):
            rest = torch.cat([rest, torch.randperm(sequences, generator=generator)])
        yield rest[:count]
        rest = rest[count:]


def error_of(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean over tokens of the squared error of outputs (..., hidden), relative to the token's mean squared target.

    The next block begins with a norm, so only the error relative to a token's state matters. A few tokens have very large states.
    """
    squares = target.square().mean(-1).clamp(min=torch.finfo(target.dtype).tiny)
    return ((outputs - target).square().mean(-1) / squares).mean()


def _error(hidden: Tensor, target: Tensor, forward: Forward) -> float:
    """Return `error_of` for a block's outputs over all windows."""
    return error_of(forward(hidden), target).item()
