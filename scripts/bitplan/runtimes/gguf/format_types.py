"""What a GGUF file stores each number format as: the type that holds it, or the one that comes nearest; known without loading torch."""

from collections.abc import Mapping
from typing import Protocol

from bitplan.formats.facts import TYPE_NAMES
from bitplan.formats.fitting import fitting_format
from bitplan.formats.table import PER_CHANNEL, size_of
from bitplan.rounding.gguf_holders import packing_of

_WIDTHS = ("Q2_K", "Q3_K", "Q4_0", "Q5_0", "Q6_K", "Q8_0", "Q8_0")
_WITH_OFFSET = ("Q2_K", "Q3_K", "Q4_1", "Q5_1", "Q6_K", "Q8_0", "Q8_0")
_MX = {"mxfp4": "MXFP4", "mxfp6_e2m3": "Q6_K", "mxfp6_e3m2": "Q6_K", "mxfp8": "Q8_0", "mxfp8_e5m2": "Q8_0"}
# Formats that are types of the file, by format.
OWN: Mapping[str, str] = {
    **{"bf16": "BF16", "fp16": "F16"},
    **TYPE_NAMES,
}
FILE_TYPES: Mapping[str, str] = {
    PER_CHANNEL: "Q8_0",
    **dict.fromkeys(("nvfp4", "nvfp4_pow2"), "NVFP4"),
    **{f"{name}{rule}": kind for name, kind in _MX.items() for rule in ("", "_rceil", "_mse")},
    **{f"int{bits}{scales}": kind for bits, kind in enumerate(_WIDTHS, 2) for scales in ("", "_bf16s")},
    **{f"int{bits}_asym{scales}": kind for bits, kind in enumerate(_WITH_OFFSET, 2) for scales in ("", "_bf16s")},
    **{f"int4_{scope}": "Q4_1" for scope in ("token", "tensor")},
    **{f"int8_{scope}": "Q8_0" for scope in ("token", "tensor")},
    **OWN,
}
_FORMATS = {kind: name for name, kind in OWN.items()}
# From few bits to many.
BY_BITS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


class Named(Protocol):
    """A format, or as much of one as is asked here."""

    name: str
    block: int
    scope: str

    def bits_per_value(self, group_size: int | None = None) -> float:
        """Return bits per value with scales."""


def type_of(name: str) -> str:
    """Return the type that stands for a format: the table's, or for a format not in it the smallest with as many bits."""
    return FILE_TYPES[name] if name in FILE_TYPES else _with_bits(size_of(name).bits_per_value())


def file_type(form: Named) -> str:
    """Return the type that stands for a format, as `type_of`; of one that no table has by its own bits."""
    return FILE_TYPES[form.name] if form.name in FILE_TYPES else _with_bits(form.bits_per_value())


def _with_bits(bits: float) -> str:
    """Return the smallest type with as many bits per value."""
    return next((kind for kind in BY_BITS if bits_of_type(kind) >= bits), "Q8_0")


def is_exact(form: Named) -> bool:
    """Return whether the file's type holds every value of the format as it is."""
    return form.name in OWN


def stored_as(form: Named) -> tuple[str, str]:
    """Return the type that an export stores a format as by default, and whether exactly: "yes", "in 8.5 bits" or "no"."""
    packing = packing_of(form.name, form.block, form.block) if form.scope == "block" else None
    if packing is None:
        return file_type(form), "yes" if is_exact(form) else "no"
    bits = bits_of_type(packing.kind)
    return packing.kind, "yes" if bits == form.bits_per_value() else f"in {bits:g} bits"


def bits_of_type(kind: str) -> float:
    """Return the bits per value of a type, e.g. 4.5 for "Q4_0"."""
    return size_of(_FORMATS[kind]).bits_per_value()


def block_of_type(kind: str) -> int:
    """Return the values of a block of a type, e.g. 256 for "Q4_K"."""
    return size_of(_FORMATS[kind]).block


def fitting_type(kind: str, columns: int) -> str:
    """Return the type that llama.cpp uses for rows of `columns` values when `kind` is asked for; F16 where none fits."""
    used = fitting_format(_FORMATS[kind], columns)
    return kind if used == _FORMATS[kind] else "F16" if used == "bf16" else OWN[used]
