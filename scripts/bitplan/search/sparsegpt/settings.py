"""How a whole model is compressed: what is pruned, how wide channels are on average where, and how grids are made."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from torch import Tensor, get_num_threads

from bitplan import __version__
from bitplan.core.errors import Problem, UserError
from bitplan.models.layer_patterns import match_layers, nearest_layers
from bitplan.models.layers import Layer, ModelInfo
from bitplan.rounding.channel_grid import Quantizer
from bitplan.rounding.sweep import Pruning
from bitplan.search.sparsegpt.layer import UNIFORM, ChannelSettings


@dataclass(frozen=True)
class ModelSettings:
    """How a model is compressed. `targets`: average widths, each for an equal part of the blocks in order (none: plain quantiles, or
    no quantization with `bits` 16); `layer_bits`: averages of the layers that a pattern matches, the last match wins.
    """

    pruning: Pruning = field(default_factory=Pruning)
    targets: tuple[float, ...] = ()
    layer_bits: tuple[tuple[str, float], ...] = ()
    method: str = "quantile"
    channels: ChannelSettings = field(default_factory=ChannelSettings)
    symmetric: bool = True
    cut_ranges: bool = False
    group_size: int | None = None
    blocksize: int = 128
    percdamp: float = 0.01
    compensate: bool = True
    quantize: bool = True

    def quantizer(self) -> Quantizer | None:
        """Return how the grids of layers are made; None where layers are pruned only."""
        return Quantizer(8, True, self.symmetric, self.cut_ranges, self.group_size) if self.quantize else None

    def target_of(self, layer: Layer, blocks: int) -> float | None:
        """Return the average width of a layer's channels; None for the plain quantiles."""
        chosen = self.targets[part_of(layer.block, blocks, len(self.targets))] if self.targets else None
        for pattern, bits in self.layer_bits:
            chosen = bits if match_layers(pattern, (layer.name,)) else chosen
        return chosen

    def check(self, info: ModelInfo) -> None:
        """Raise `UserError` with everything that does not fit: patterns without a layer, targets out of reach, shares, widths."""
        problems = list(self._problems(info))
        if problems:
            raise UserError(problems)

    def _problems(self, info: ModelInfo) -> Iterator[Problem]:
        names, blocks = [layer.name for layer in info.quantizable], blocks_of(info)
        for check in (lambda: self.pruning.check(self.blocksize), self.channels.check):
            try:
                check()
            except UserError as error:
                yield from error.problems
        for pattern, _ in self.layer_bits:
            if not match_layers(pattern, names):
                yield Problem(f"layer_bits: {pattern}", "matches no layer", nearest_layers(pattern, names))
        if len(self.targets) > blocks:
            yield Problem(
                "target_avg_bits", f"{len(self.targets)} parts of {blocks} blocks", "Give one for each block at most"
            )
        targets = (
            {self.target_of(layer, blocks) for layer in info.quantizable} if len(self.targets) <= blocks else set()
        )
        yield from self._target_problems(targets)

    def _target_problems(self, targets: set[float | None]) -> Iterator[Problem]:
        if not self.quantize:
            return
        if self.method != "quantile" and None in targets:
            yield Problem("target_avg_bits", f"is what {self.method} holds, and is absent", "Give it, or use quantile")
        for target in sorted(targets - {None}):
            whole = target == int(target) and 2 <= target <= 8
            try:
                if self.method != UNIFORM:
                    self.channels.check_target(target)
                elif not whole:
                    hint = "Give a whole number from 2 to 8, or another allocation"
                    yield Problem("target_avg_bits", f"{target:g} is no width that all channels can have", hint)
            except UserError as error:
                yield from error.problems

    def digest(self, info: ModelInfo, tokens: Tensor, dtype: str) -> str:
        """Return a SHA-256 of everything that decides the result: also the threads, which may change last digits."""
        told = json.dumps([info.fingerprint, dtype, get_num_threads(), __version__, asdict(self)], sort_keys=True)
        return hashlib.sha256(told.encode() + tokens.numpy().tobytes()).hexdigest()


def part_of(block: int, blocks: int, parts: int) -> int:
    """Return which of the equal parts of the blocks a block belongs to, from 0. Part k begins at block k x blocks // parts: of an odd
    number of blocks the middle one is in the second half, as `block < blocks // 2` says.
    """
    return max(part for part in range(parts) if part * blocks // parts <= block)


def blocks_of(info: ModelInfo) -> int:
    """Return the number of decoder blocks that hold layers."""
    return 1 + max(layer.block for layer in info.quantizable)
