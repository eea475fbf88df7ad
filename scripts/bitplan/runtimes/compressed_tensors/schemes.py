"""Which scheme of the library stores each number format, and the verdict on every layer. Needs nothing but names and shapes.

The library (compressed-tensors 0.20) packs integers of 1 to 8 bits densely, least significant bit first along a row, MXFP4 in
nibbles, low one first, and MXFP8 as E4M3 bytes; an MX scale is one byte, e + 127. Every E2M3 and E3M2 value is an E4M3 value, so MXFP6 is
stored as MXFP8: the same values in more bits. NVFP4 has nibbles, an E4M3 byte for each 16 of them, and the scale of the matrix; GGUF's NVFP4 is the
same with a scale of 1. vLLM has one such scale for the layers that it stores as one.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from bitplan.core.safetensors_io import read_header
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.layer_plan import LayerPlan
from bitplan.runtimes.packed.verdicts import (
    DENSE,
    dense_verdict,
    element_of,
    embedding_refusal,
    family_refusal,
    integer_of,
    refused,
    with_inputs,
)
from bitplan.runtimes.runtime import Verdict

NAME = "compressed_tensors"
MX_GROUP, INT_GROUP = 32, 128
NV_GROUP, NV_PACKING = 16, "nvfp4-pack-quantized"
NV = ("nvfp4", "nvfp4_pow2", "gguf_nvfp4")
MX = {
    "mxfp4": ("mxfp4-pack-quantized", 4),
    "mxfp8": ("mxfp8-quantized", 8),
    "mxfp6_e2m3": ("mxfp8-quantized", 8),
    "mxfp6_e3m2": ("mxfp8-quantized", 8),
}
HALF = "in float16 and float32; a bfloat16 model rounds its scales"
IN_BFLOAT16 = "transformers rounds the values to bfloat16, which holds those of nvfp4_pow2"
UNLOADABLE = "vLLM loads zero points; transformers 5.23 does not, and the workflow cannot score such a file"


@dataclass(frozen=True)
class Scheme:
    """How the library stores a layer: its name of the packing, "int" or "float", bits of a code, values of a group, zero points or none."""

    packing: str
    kind: str
    bits: int
    group: int
    symmetric: bool = True

    @property
    def stored_bits(self) -> float:
        """Bits per weight with scales (8 bits of an MX block, 16 of an integer group) and zero points."""
        scale = 16 if self.kind == "int" else 8
        return self.bits + (scale + (0 if self.symmetric else self.bits)) / self.group

    @property
    def label(self) -> str:
        """A short name, as "int4 g128"."""
        names = {"pack-quantized": f"int{self.bits}", NV_PACKING: "nvfp4"}
        kind = names.get(self.packing, f"mxfp{self.bits}")
        return f"{kind}{'' if self.symmetric else ' asym'} g{self.group}"


def scheme_of(made: LayerPlan) -> Scheme | None:
    """Return the scheme that stores a layer's format; None for a format that the library has none for, and for 16 bits."""
    if made.wq in NV:
        return Scheme(NV_PACKING, "float", 4, NV_GROUP)
    element = element_of(made.wq)
    if element in MX:
        packing, bits = MX[element]
        return Scheme(packing, "float", bits, made.group_size or MX_GROUP)
    integer = integer_of(made.wq)
    if integer is None:
        return None
    bits, symmetric = integer
    return Scheme("pack-quantized", "int", bits, made.group_size or INT_GROUP, symmetric)


def _refusal(layer: Layer, made: LayerPlan, scheme: Scheme | None) -> str:
    """Return why a layer cannot be stored; "" where it can."""
    if layer.is_embedding:
        return embedding_refusal(layer)
    if layer.transposed:
        return "the library packs the weights of Linear modules, and this is a Conv1D"
    if ".experts." in layer.name:
        return "packed experts are not written"
    if scheme is None:
        return f"compressed-tensors has no packing for {made.wq}"
    if scheme.kind == "float" and scheme.packing != NV_PACKING and scheme.group != MX_GROUP:
        return f"MX blocks have {MX_GROUP} values, not {scheme.group}"
    if layer.shape[1] % scheme.group:
        return f"rows of {layer.shape[1]} columns are no multiple of the group of {scheme.group}"
    return ""


def layer_verdict(layer: Layer, made: LayerPlan, info: ModelInfo | None = None) -> Verdict:
    """Return how a checkpoint of packed tensors holds a layer, before SmoothQuant's factors are looked at."""
    if made.wq in DENSE:
        return dense_verdict(made)
    scheme = scheme_of(made)
    if refusal := _refusal(layer, made, scheme) or family_refusal(info):
        return refused(refusal)
    wider = made.wq.startswith("mxfp6")
    limits = [] if scheme.symmetric else [UNLOADABLE]
    if scheme.kind == "int" and not made.wq.endswith("_bf16s"):
        limits.append(HALF)
    if made.wq == "nvfp4":
        limits.append(IN_BFLOAT16)
    reasons = [*(["every value is an E4M3 value"] if wider else []), *limits]
    status = "exact_in_more_bits" if wider else "exact"
    verdict = with_inputs(made, status, scheme.label, scheme.stored_bits, reasons, always=not limits)
    return replace(verdict, shared_form="nvfp4_pow2" if made.wq == "nvfp4" else "")


def has_half_scales(folder: Path) -> bool:
    """Return whether a checkpoint's integers have float16 scales, which a bfloat16 server would round; those of `_bf16s` it keeps."""
    headers = map(read_header, folder.glob("*.safetensors"))
    return any(
        name.endswith(".weight_scale") and info.dtype == "F16" for held in headers for name, info in held.items()
    )
