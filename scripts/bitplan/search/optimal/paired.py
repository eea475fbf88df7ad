"""Whether one plan damages less than another: the mean difference over the same windows of text, with its 95 % interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of (candidate - incumbent) over windows, in nats per token, and the ends of its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float
    windows: int

    @property
    def lower(self) -> bool:
        """Whether the candidate damages less, beyond chance."""
        return self.high < 0


def difference(candidate: Sequence[float], incumbent: Sequence[float]) -> Difference:
    """Return the paired difference of the mean KL of windows, (W,) each. Of a single window the interval is endless."""
    apart: NDArray[np.float64] = np.asarray(candidate, dtype=np.float64) - np.asarray(incumbent, dtype=np.float64)
    mean, windows = float(apart.mean()), len(apart)
    if windows < 2:
        return Difference(mean, -math.inf, math.inf, windows)
    half = float(student.ppf(0.5 + CONFIDENCE / 2, windows - 1) * apart.std(ddof=1) / math.sqrt(windows))
    return Difference(mean, mean - half, mean + half, windows)
