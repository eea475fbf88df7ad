"""Which mode of MLX stores each number format, and the verdict on every layer. Needs nothing but names and shapes.

MLX (0.32) has affine integers of 2, 3, 4, 5, 6 and 8 bits in groups of 32, 64 or 128 with a scale and a bias each, value = code x
scale + bias, and the MX formats in blocks of 32. A symmetric integer is an affine one with the bias -2^(b-1) x scale; a zero point
is the bias -zero x scale. Every E2M3 and E3M2 value is an E4M3 value, so MXFP6 is stored as MXFP8. NVFP4 has blocks of 16 with an E4M3 scale each and none for the matrix: what GGUF's NVFP4 is. A scale of the matrix, which `nvfp4` has, is no
parameter of mlx.nn's layers.
"""

from dataclasses import dataclass

from bitplan.formats.table import size_of
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.layer_plan import LayerPlan
from bitplan.runtimes.mlx.names import FAMILIES
from bitplan.runtimes.packed.verdicts import (
    DENSE,
    dense_verdict,
    element_of,
    embedding_refusal,
    integer_of,
    refused,
    with_inputs,
)
from bitplan.runtimes.runtime import Verdict

NAME = "mlx"
AFFINE, INT_GROUP, AFFINE_GROUPS = "affine", 128, (32, 64, 128)
NVFP4 = "nvfp4"
# Of a format without the suffix of its scale rule: the mode, bits of a code, values of a block.
FLOATS = {
    "mxfp4": ("mxfp4", 4, 32),
    "mxfp8": ("mxfp8", 8, 32),
    "mxfp6_e2m3": ("mxfp8", 8, 32),
    "mxfp6_e3m2": ("mxfp8", 8, 32),
    "gguf_nvfp4": ("nvfp4", 4, 16),
}
# Bits of a code as MLX stores it.
WIDTHS = {2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 8, 8: 8}
BESIDE_SCALES = {True: "a bias of 16 bits beside each scale", False: "a bias of 32 bits beside each scale"}


@dataclass(frozen=True)
class Scheme:
    """How MLX stores a layer: mode, bits of a code, values of a group; of integers their own bits, and whether they have zero points."""

    mode: str
    bits: int
    group: int
    own_bits: int = 0
    symmetric: bool = True

    @property
    def stored_bits(self) -> float:
        """Bits per weight with scales: 8 of an MX block; 16 and a bias of 16, or 32 where it is a zero point's, of an integer group."""
        scale = 8 if self.mode != AFFINE else 32 if self.symmetric else 48
        return self.bits + scale / self.group

    @property
    def entry(self) -> dict[str, int | str]:
        """What config.json says of the layer."""
        return {"group_size": self.group, "bits": self.bits, "mode": self.mode}

    @property
    def label(self) -> str:
        """A short name, as "affine4 g128"."""
        return f"{AFFINE}{self.bits} g{self.group}" if self.mode == AFFINE else f"{self.mode} g{self.group}"


def scheme_of(made: LayerPlan) -> Scheme | None:
    """Return the scheme that stores a layer's format; None for a format that MLX has none for, and for 16 bits."""
    element = element_of(made.wq)
    if element in FLOATS:
        mode, bits, block = FLOATS[element]
        return Scheme(mode, bits, block if size_of(made.wq).fixed_block else made.group_size or block)
    integer = integer_of(made.wq)
    if integer is None:
        return None
    own, symmetric = integer
    return Scheme(AFFINE, WIDTHS[own], made.group_size or INT_GROUP, own, symmetric)


def _groups_of(scheme: Scheme) -> tuple[int, ...]:
    """Return the groups that MLX has for a scheme's mode."""
    return (
        AFFINE_GROUPS
        if scheme.mode == AFFINE
        else tuple({block for mode, _, block in FLOATS.values() if mode == scheme.mode})
    )


def _refusal(layer: Layer, made: LayerPlan, scheme: Scheme | None) -> str:
    """Return why a layer cannot be packed; "" where it can."""
    if layer.is_embedding:
        return embedding_refusal(layer)
    if layer.transposed:
        return "weights are packed along the input of a Linear module, and this is a Conv1D"
    if made.wq.startswith("nvfp4"):
        return "MLX's nvfp4 has no scale of the matrix: gguf_nvfp4 has none either"
    if scheme is None:
        return f"MLX has no mode for {made.wq}"
    groups = _groups_of(scheme)
    if scheme.group not in groups:
        return f"MLX has groups of {', '.join(map(str, groups))} values in {scheme.mode}, not {scheme.group}"
    if layer.shape[1] % scheme.group:
        return f"rows of {layer.shape[1]} columns are no multiple of the group of {scheme.group}"
    return ""


def _reasons(scheme: Scheme, made: LayerPlan) -> list[str]:
    """Return why a scheme has more bits than the plan's format; nothing where it has as many."""
    if scheme.mode != AFFINE:
        return ["every value is an E4M3 value"] if made.wq.startswith("mxfp6") else []
    wider = [f"MLX has no {scheme.own_bits} bits"] if scheme.bits != scheme.own_bits else []
    return [*wider, BESIDE_SCALES[scheme.symmetric]]


def layer_verdict(layer: Layer, made: LayerPlan, info: ModelInfo) -> Verdict:
    """Return how MLX holds a layer, before SmoothQuant's factors are looked at; a family that it does not know is refused."""
    if layer.transposed and made.wq not in DENSE:
        return refused(_refusal(layer, made, None))
    if info.model_type not in FAMILIES:
        return refused(f"mlx-lm's names of the matrices of {info.model_type} are not known: docs/runtimes.md")
    if made.wq in DENSE:
        return dense_verdict(made)
    scheme = scheme_of(made)
    if refusal := _refusal(layer, made, scheme):
        return refused(refusal)
    reasons = _reasons(scheme, made)
    return with_inputs(made, "exact_in_more_bits" if reasons else "exact", scheme.label, scheme.stored_bits, reasons)
