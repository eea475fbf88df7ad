"""What a GGUF file stores each number format as: the type that holds it, or the one that comes nearest."""

from collections.abc import Mapping

from gguf import GGMLQuantizationType

from bitplan.formats.base import Format
from bitplan.formats.ggml import TYPES, block_of
from bitplan.formats.table import PER_CHANNEL
from bitplan.rounding.gguf_packing import packing_of

_WIDTHS = ("Q2_K", "Q3_K", "Q4_0", "Q5_0", "Q6_K", "Q8_0", "Q8_0")
_WITH_OFFSET = ("Q2_K", "Q3_K", "Q4_1", "Q5_1", "Q6_K", "Q8_0", "Q8_0")
_MX = {"mxfp4": "MXFP4", "mxfp6_e2m3": "Q6_K", "mxfp6_e3m2": "Q6_K", "mxfp8": "Q8_0", "mxfp8_e5m2": "Q8_0"}
FILE_TYPES: Mapping[str, str] = {
    **{"bf16": "BF16", "fp16": "F16", PER_CHANNEL: "Q8_0"},
    **dict.fromkeys(("nvfp4", "nvfp4_pow2"), "NVFP4"),
    **{f"{name}{rule}": kind for name, kind in _MX.items() for rule in ("", "_rceil", "_mse")},
    **{f"int{bits}": kind for bits, kind in enumerate(_WIDTHS, 2)},
    **{f"int{bits}_asym": kind for bits, kind in enumerate(_WITH_OFFSET, 2)},
    **{f"int4_{scope}": "Q4_1" for scope in ("token", "tensor")},
    **{f"int8_{scope}": "Q8_0" for scope in ("token", "tensor")},
    **TYPES,
}
EXACT_FAMILIES = ("float", "gguf")
# From few bits to many.
BY_BITS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def file_type(form: Format) -> str:
    """Return the type that stands for a format: the table's, or for a format not in it the smallest with as many bits."""
    if form.name in FILE_TYPES:
        return FILE_TYPES[form.name]
    return next((kind for kind in BY_BITS if bits_of_type(kind) >= form.bits_per_value()), "Q8_0")


def is_exact(form: Format) -> bool:
    """Return whether the file's type holds every value of the format as it is."""
    return form.family in EXACT_FAMILIES


def stored_as(form: Format) -> tuple[str, str]:
    """Return the type that an export stores a format as by default, and whether exactly: "yes", "in 8.5 bits" or "no"."""
    packing = packing_of(form.name, form.block, form.block) if form.scope == "block" else None
    if packing is None:
        return file_type(form), "yes" if is_exact(form) else "no"
    bits = bits_of_type(packing.kind)
    return packing.kind, "yes" if bits == form.bits_per_value() else f"in {bits:g} bits"


def bits_of_type(kind: str) -> float:
    """Return the bits per value of a type, e.g. 4.5 for "Q4_0"."""
    values, size = block_of(GGMLQuantizationType[kind])
    return 8 * size / values
