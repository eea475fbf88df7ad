"""Names of candidates: a weight format, its group size if not the default, and after a slash the format of the layer's inputs.

q4_k   mxfp4   int4_g128   mxfp4/mxfp8   int4_g128/int8_token   bf16
"""

import re
from dataclasses import dataclass

from bitplan.core.errors import nearest
from bitplan.formats.facts import GGUF_TYPES, UNQUANTIZED
from bitplan.formats.table import NAMES, NVFP4

GROUPED = re.compile(r"^(?P<base>.+)_g(?P<size>[1-9]\d*)$")
# Formats with scales inside their blocks, or without scales: their group size is fixed.
WITHOUT_GROUPS = (*GGUF_TYPES, *NVFP4, UNQUANTIZED, "fp16")


@dataclass(frozen=True)
class Pair:
    """The formats of a layer's weights and inputs (bf16: not quantized), and values per group (None: the format's default)."""

    wq: str
    aq: str = UNQUANTIZED
    group_size: int | None = None

    @property
    def name(self) -> str:
        """The name of the candidate in palettes."""
        group = "" if self.group_size is None else f"_g{self.group_size}"
        inputs = "" if self.aq == UNQUANTIZED else f"/{self.aq}"
        return f"{self.wq}{group}{inputs}"


def _known(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"format {name!r} is not known. {nearest(name, NAMES) or 'docs/formats.md lists them'}")
    return name


def parse_pair(name: str) -> Pair:
    """Parse the name of a candidate. Raises ValueError that says what is wrong with it."""
    weights, stroke, inputs = name.partition("/")
    grouped = None if weights in NAMES else GROUPED.match(weights)
    wq = _known(grouped["base"] if grouped else weights)
    if grouped and wq in WITHOUT_GROUPS:
        raise ValueError(f"format {wq} has no groups of another size: {name!r}")
    aq = _known(inputs) if stroke else UNQUANTIZED
    if aq in (*GGUF_TYPES, *NVFP4):
        raise ValueError(f"format {aq} is for weights alone: {name!r} cannot have it for inputs")
    return Pair(wq, aq, int(grouped["size"]) if grouped else None)
