"""The formats that a plan gives one layer; known without loading torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitplan.formats.facts import UNQUANTIZED

# Bits of a weight that a plan leaves as it is.
UNQUANTIZED_BITS = 16


@dataclass(frozen=True)
class LayerPlan:
    """The formats of one layer: weights `wq`, input activations `aq`, values per block along `in` (None: the format's default).

    `stored_bits` is the layer's size if its format is `per_channel`. `embeddings` lifts the protection of the token embedding or
    the output matrix.
    """

    wq: str = UNQUANTIZED
    aq: str = UNQUANTIZED
    group_size: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    stored_bits: int | None = None
    embeddings: bool = False

    @property
    def quantized(self) -> bool:
        """Whether weights or activations are quantized."""
        return (self.wq, self.aq) != (UNQUANTIZED, UNQUANTIZED)

    @property
    def weights_change(self) -> bool:
        """Whether the weights are quantized."""
        return self.wq != UNQUANTIZED

    def to_json(self) -> dict[str, Any]:
        """Return the keys of an override: the formats, or "skip" for a layer that is not quantized."""
        return {**(formats_of(self) if self.quantized else {"skip": True}), **self.notes}


def formats_of(choice: LayerPlan) -> dict[str, Any]:
    """Return the keys of an override that name formats: `wq`, `aq`, and what differs from a layer's usual."""
    extra = {
        "group_size": choice.group_size,
        "stored_bits": choice.stored_bits,
        "embeddings": choice.embeddings or None,
    }
    return {"wq": choice.wq, "aq": choice.aq, **{key: value for key, value in extra.items() if value is not None}}
