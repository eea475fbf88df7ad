"""Second moments of few tokens, shrunk towards their diagonal by how far the two halves of the text disagree.

Of fewer tokens than columns H is singular: directions that the text never took cost nothing, and rounding pushes its errors there. So the
correlations R of the inputs are estimated as (1 - s) R + s I, as by Ledoit and Wolf (2004) with the target and scale of Schaefer and Strimmer
(2005). They take the noise of R from independent samples; tokens are not, so here it is that between the halves of the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bitplan.models.walk import Block, Forward
from bitplan.statistics.hessian import CrossMoments, InputMoments, collect_moments, inputs_of

ROWS_AT_ONCE = 1024
# Text to come differs from the mean of all text as the calibration text does: the noise counts twice.
NOISE_COUNTS = 2.0


def weigh_noise(share: float, factor: float) -> float:
    """Return the share of noise in the squares of correlations after `factor` times the noise: odds s / (1 - s) are multiplied."""
    return factor * share / (1 - share + factor * share)


def shrink_(hessian: Tensor, shrinkage: float) -> Tensor:
    """Replace H (in, in) by (1 - s) H + s diag(H), and return it."""
    diagonal = hessian.diagonal().clone()
    hessian.mul_(1 - shrinkage).diagonal().copy_(diagonal)
    return hessian


def inverse_sizes(diagonal: Tensor) -> Tensor:
    """Return H_jj^-1/2 of every column (in,); 0 of a dead one."""
    size = diagonal.sqrt()
    return torch.where(size > 0, 1 / size, 0.0)


def noise_share(sums: tuple[Tensor, Tensor], counts: Sequence[int], scale: Tensor, diagonal: bool = True) -> float:
    """Return the share of noise in the sum of squares of s_j m_jk s_k, from 0 to 1; 1 if a half has no tokens.

    sums: of the two halves (in, in), over n and over m tokens; m_jk are the means over both. A mean over all has n m / (n + m)^2 of the
    expected squared difference of its halves: a quarter if n = m. Without `diagonal` only j != k count. Rows are taken some at a time: such
    a matrix may be as large as a block of the model.
    """
    if not all(counts):
        return 1.0
    own = [2.0 / count for count in counts]
    squares = noise = 0.0
    for start in range(0, len(scale), ROWS_AT_ONCE):
        first, second = (half[start : start + ROWS_AT_ONCE] for half in sums)
        total = (first + second).mul_(2.0 / sum(counts))
        difference = (first * own[0]).sub_(second * own[1])
        for each in () if diagonal else (total, difference):
            each.diagonal(start).zero_()
        sizes = scale[start : start + ROWS_AT_ONCE].unsqueeze(1)
        squares += _squares_(total, sizes, scale)
        noise += _squares_(difference, sizes, scale)
    noise *= counts[0] * counts[1] / sum(counts) ** 2
    return min(1.0, noise / squares) if squares > 0 else 0.0


def _squares_(rows: Tensor, sizes: Tensor, scale: Tensor) -> float:
    return rows.mul_(sizes).mul_(scale).square_().sum(dtype=torch.float64).item()


def shrunk_cross_(cross: CrossMoments) -> Tensor:
    """Return 2/N sum (x' - x) x^T, (in, in), shrunk towards 0 by its own noise, in the scale of the columns of H.

    It takes the memory of the first half, and `cross` is of no use any more.
    """
    noise = noise_share(cross.grams, cross.tokens, inverse_sizes(cross.diagonal))
    return cross.grams[0].add_(cross.grams[1]).mul_(2.0 / max(1, sum(cross.tokens))).mul_(1 - noise)


def shrink_crosses_(crosses: dict[str, CrossMoments]) -> dict[str, Tensor]:
    """Return {layer: `shrunk_cross_`} and leave `crosses` empty; layers that share moments share the matrix."""
    shared: dict[int, Tensor] = {}
    names = {name: id(cross) for name, cross in crosses.items()}
    while crosses:
        _, cross = crosses.popitem()
        if id(cross) not in shared:
            shared[id(cross)] = shrunk_cross_(cross)
        del cross
    return {name: shared[key] for name, key in names.items()}


@dataclass(frozen=True)
class HalvedMoments:
    """The moments of a layer's input over the first and the second half of a text; a half without tokens is empty."""

    first: InputMoments
    second: InputMoments

    @property
    def tokens(self) -> int:
        """Tokens of both halves."""
        return self.first.tokens + self.second.tokens

    @property
    def plain(self) -> Tensor:
        """H = 2/N sum x x^T of all tokens, (in, in)."""
        return (self.first.gram + self.second.gram).mul_(2.0 / max(1, self.tokens))

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of H, (in,)."""
        return (self.first.gram.diagonal() + self.second.gram.diagonal()) * (2.0 / max(1, self.tokens))

    @cached_property
    def noise(self) -> float:
        """Share of noise in the correlations of different columns (`noise_share`), from 0 to 1."""
        counts = (self.first.tokens, self.second.tokens)
        return noise_share((self.first.gram, self.second.gram), counts, inverse_sizes(self.diagonal), diagonal=False)

    @property
    def shrinkage(self) -> float:
        """The s by which H of all tokens is shrunk."""
        return weigh_noise(self.noise, NOISE_COUNTS)

    @cached_property
    def hessian(self) -> Tensor:
        """H of all tokens, shrunk, (in, in)."""
        return shrink_(self.plain, self.shrinkage)

    def shrunk_half(self, half: InputMoments) -> Tensor:
        """H of one of the halves, shrunk as half of the tokens need it, (in, in)."""
        return shrink_(half.hessian, weigh_noise(self.noise, 2 * NOISE_COUNTS))


def collect_halves(block: Block, hidden: Tensor, forward: Forward) -> Mapping[str, HalvedMoments]:
    """Return {layer: moments of its input} of windows hidden (sequences, length, hidden); layers that read the same tensor share them.

    Halves are the first and the last windows; of a single window the first and the last tokens.
    """
    halves = (
        _halves_of_window(block, hidden, forward) if len(hidden) == 1 else _halves_of_windows(block, hidden, forward)
    )
    shared: dict[tuple[int, int], HalvedMoments] = {}
    return {name: shared.setdefault((id(pair[0]), id(pair[1])), HalvedMoments(*pair)) for name, pair in halves.items()}


def count_window_(cross: CrossMoments, inputs: Tensor, reference: Tensor, number: int, windows: int) -> None:
    """Count a window's inputs in the half that `collect_halves` counts it in."""
    if windows > 1:
        cross.add_(inputs, reference, int(2 * number >= windows))
        return
    flat, wide = (each.reshape(-1, each.shape[-1]).tensor_split(2) for each in (inputs, reference))
    for half in range(2):
        cross.add_(flat[half], wide[half], half)


def _halves_of_windows(block: Block, hidden: Tensor, forward: Forward) -> dict[str, tuple[InputMoments, InputMoments]]:
    found = []
    for half in hidden.chunk(2):
        with collect_moments(block) as moments:
            forward(half)
        found.append(dict(moments))
    empty: dict[int, InputMoments] = {}

    def of(half: Mapping[str, InputMoments], other: Mapping[str, InputMoments], name: str) -> InputMoments:
        """Return a layer's moments over a half; empty ones, shared by layers with one input, if no token reached it there."""
        if name in half:
            return half[name]
        gram, key = other[name].gram, id(other[name])
        if key not in empty:  # as large as a block of the model: not made to be thrown away
            empty[key] = InputMoments.empty(len(gram), gram.device, gram.dtype)
        return empty[key]

    names = dict.fromkeys([*found[0], *found[1]])
    return {name: (of(*found, name), of(*found[::-1], name)) for name in names}


def _halves_of_window(block: Block, hidden: Tensor, forward: Forward) -> dict[str, tuple[InputMoments, InputMoments]]:
    shared: dict[int, tuple[InputMoments, InputMoments]] = {}
    with inputs_of(block) as inputs:
        forward(hidden)
    for tensor in inputs.values():
        if id(tensor) not in shared:
            flat = tensor.detach().reshape(-1, tensor.shape[-1])
            shared[id(tensor)] = tuple(InputMoments.empty(flat.shape[1], flat.device) for _ in range(2))
            for moments, half in zip(shared[id(tensor)], flat.tensor_split(2), strict=True):
                moments.add_(half)
    return {name: shared[id(tensor)] for name, tensor in inputs.items() if tensor.numel()}
