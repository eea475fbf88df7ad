"""How much each of the five scores of a channel counts, where nothing else is said."""

from collections.abc import Mapping
from types import MappingProxyType

WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"activation": 0.25, "hessian": 0.25, "weight": 0.15, "output": 0.25, "stability": 0.10}
)
