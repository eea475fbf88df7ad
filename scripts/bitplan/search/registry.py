"""Which methods there are: the command of each, and the tables that the workflow hands to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Method:
    """A search method: its command, whether it reads layer statistics and a saved evaluation, the key of its summary."""

    script: str
    needs_statistics: bool
    needs_teacher: bool
    summary_key: str


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "adaptive": Method("adaptive_quantization_search.py", True, True, "search_summary"),
        "random": Method("random_mixed_precision_quantization.py", False, False, "summary"),
    }
)
