"""The widths that a run gave to channels, layer by layer, and their printed summary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

RULE = "=" * 60


@dataclass(frozen=True)
class LayerBits:
    """One layer: how many channels have each width, and the range of their importance."""

    name: str
    counts: dict[int, int]
    importance: tuple[float, float]

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return sum(self.counts.values())

    @property
    def avg_bits(self) -> float:
        """Mean width of the channels; scales and masks are not in it."""
        return sum(width * number for width, number in self.counts.items()) / self.channels


@dataclass
class QuantizationStats:
    """The layers of a run in the order in which they were compressed."""

    layers: list[LayerBits] = field(default_factory=list)

    def add_(self, name: str, widths: Sequence[int], importance: Sequence[float]) -> None:
        """Note a layer's widths and scores, one of each per channel."""
        counts = {int(width): int(number) for width, number in sorted(Counter(np.asarray(widths).tolist()).items())}
        self.layers.append(LayerBits(name, counts, (float(np.min(importance)), float(np.max(importance)))))

    @property
    def counts(self) -> dict[int, int]:
        """Channels of each width over all layers, by width."""
        total: Counter[int] = Counter()
        for layer in self.layers:
            total.update(layer.counts)
        return dict(sorted(total.items()))

    @property
    def avg_bits(self) -> float:
        """Mean width of all channels; 0 before the first layer."""
        channels = sum(self.counts.values())
        return sum(width * number for width, number in self.counts.items()) / channels if channels else 0.0

    def summary(self) -> str:
        """Return the summary as it is printed."""
        channels = sum(self.counts.values())
        lines = [RULE, "量化统计摘要 (Quantization Statistics Summary)", RULE, "", f"总通道数: {channels}", "比特分布:"]
        lines += [f"  {b}-bit: {number:6d} 通道 ({100 * number / channels:.2f}%)" for b, number in self.counts.items()]
        lines += ["", f"平均比特数: {self.avg_bits:.3f} bits", "", "每层统计:"]
        for place, layer in enumerate(self.layers):
            low, high = layer.importance
            told = "" if layer.name == f"layer_{place}" else f"  {layer.name}"
            lines.append(
                f"  Layer {place}: avg={layer.avg_bits:.2f} bits, importance_range=({low:.3f}, {high:.3f}){told}"
            )
        return "\n".join((*lines, RULE))

    def print_summary(self) -> None:
        """Print the summary."""
        print(self.summary())
