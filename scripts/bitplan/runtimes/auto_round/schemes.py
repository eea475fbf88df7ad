"""Which integers of AutoRound's format store each number format, and the verdict on every layer. Needs nothing but names and shapes.

Integers of 2, 3, 4 and 8 bits in groups, with a float16 scale and a zero point for each, symmetric ones too: value = (code - zero) x
scale. auto-round 0.16 reads 5 to 7 bits besides, other readers do not, so these are stored in 8.
"""

from dataclasses import dataclass

from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.layer_plan import LayerPlan
from bitplan.runtimes.packed.verdicts import (
    DENSE,
    dense_verdict,
    embedding_refusal,
    family_refusal,
    integer_of,
    refused,
    with_inputs,
)
from bitplan.runtimes.runtime import Verdict

NAME = "auto_round"
GROUP, WORD = 128, 32
# Bits of a code as it is stored.
WIDTHS = {2: 2, 3: 3, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}


@dataclass(frozen=True)
class Scheme:
    """How a layer is stored: bits of a code, values of a group, and whether all zero points are 2^(bits - 1)."""

    bits: int
    group: int
    symmetric: bool = True

    @property
    def stored_bits(self) -> float:
        """Bits per weight, with a scale of 16 bits and a zero point for each group."""
        return self.bits + (16 + self.bits) / self.group

    @property
    def entry(self) -> dict[str, int | bool]:
        """What the configuration says of the layer."""
        return {"bits": self.bits, "group_size": self.group, "sym": self.symmetric}

    @property
    def label(self) -> str:
        """A short name, as "int4 asym g128"."""
        return f"int{self.bits}{'' if self.symmetric else ' asym'} g{self.group}"


def scheme_of(made: LayerPlan) -> Scheme | None:
    """Return the scheme that stores a layer's format; None for a format that is no integer with a group."""
    integer = integer_of(made.wq)
    if integer is None:
        return None
    bits, symmetric = integer
    return Scheme(WIDTHS[bits], made.group_size or GROUP, symmetric)


def _refusal(layer: Layer, made: LayerPlan, scheme: Scheme | None) -> str:
    """Return why a layer cannot be stored; "" where it can."""
    if layer.is_embedding:
        return embedding_refusal(layer)
    if layer.transposed:
        return "written for Linear modules, and this is a Conv1D"
    if ".experts." in layer.name:
        return "packed experts are not written"
    if scheme is None:
        return f"AutoRound's format has integers alone, not {made.wq}"
    if layer.shape[0] % WORD or layer.shape[1] % WORD:
        return f"rows and columns must be multiples of {WORD}, and these are {layer.shape[0]} x {layer.shape[1]}"
    if layer.shape[1] % scheme.group:
        return f"rows of {layer.shape[1]} columns are no multiple of the group of {scheme.group}"
    return ""


def layer_verdict(layer: Layer, made: LayerPlan, info: ModelInfo) -> Verdict:
    """Return how AutoRound's format holds a layer, before SmoothQuant's factors are looked at."""
    if made.wq in DENSE:
        return dense_verdict(made)
    scheme = scheme_of(made)
    if refusal := _refusal(layer, made, scheme) or family_refusal(info):
        return refused(refusal)
    own, _ = integer_of(made.wq)
    reasons = [f"not every reader has {own} bits"] if own != scheme.bits else []
    if scheme.symmetric:
        reasons.append("a zero point beside each scale")
    return with_inputs(made, "exact_in_more_bits" if reasons else "exact", scheme.label, scheme.stored_bits, reasons)
