"""Substitutes for formats whose blocks do not fit a layer's rows. A GGUF type needs rows that are a multiple of its block.

For other rows llama.cpp uses a type with blocks of 32 of about the same quality, or F16 if the rows are not a multiple of 32
either (`tensor_type_fallback` in its llama-quant.cpp). `fitting_format` applies the same rule wherever a format is requested.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bitplan.formats.facts import UNQUANTIZED

# Values per block.
BLOCKS: Mapping[str, int] = {
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"), 256),
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "tq1_0", "tq2_0"), 256),
    "gguf_nvfp4": 64,
    **dict.fromkeys(("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "gguf_mxfp4"), 32),
    **dict.fromkeys(("nvfp4", "nvfp4_pow2"), 16),
}
# llama.cpp's substitutes, including those of types that are not among the formats here.
SUBSTITUTES: Mapping[str, str] = {
    **dict.fromkeys(("q2_k", "q3_k", "tq1_0", "tq2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
}


# How a warning says that some layers get a substitute.
UNFIT = "have rows that do not fit a format asked for"


def fitting_format(name: str, columns: int) -> str:
    """Return the format used for rows of `columns` values when `name` is requested: itself, its substitute, or "bf16" (16 bits).

    Formats without a fixed block, and unknown ones, fit every row. In a pair weights/inputs (pairs.py) only the format of the
    weights has to fit; that of the inputs is unchanged.
    """
    weights, stroke, inputs = name.partition("/")
    tried = (weights, SUBSTITUTES.get(weights, UNQUANTIZED))
    used = next((form for form in tried if columns % BLOCKS.get(form, 1) == 0), UNQUANTIZED)
    return f"{used}{stroke}{inputs}"


def fitting_formats(names: Iterable[str], columns: int) -> dict[str, tuple[str, ...]]:
    """Return {format used: the requested `names` that it replaces}, in order of first use."""
    sources: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(names):
        used = fitting_format(name, columns)
        sources[used] = (*sources.get(used, ()), name)
    return sources


def substitution(requested: Sequence[str], used: str, columns: int) -> str:
    """Return why a format is in a plan, e.g. "q2_k, q3_k -> q4_0: 64 columns"; "" if it was requested itself."""
    return "" if used in requested or not requested else f"{', '.join(requested)} -> {used}: {columns} columns"


def fitting_summary(columns: Sequence[int]) -> list[dict[str, Any]]:
    """Return, for each row length that some format does not fit, how many layers have it and {format: substitute}."""
    summary = []
    for length, layers in sorted(Counter(columns).items()):
        used = {name: fitting_format(name, length) for name in BLOCKS}
        if other := {name: form for name, form in used.items() if form != name}:
            summary.append({"columns": length, "layers": layers, "formats": other})
    return summary


def fitting_lines(summary: Iterable[Mapping[str, Any]], layers: int) -> list[str]:
    """Return the summary as lines for a terminal; `layers` is the number of all layers. Empty if every format fits."""
    lines = []
    for part in summary:
        substitutes = _arrows(part["formats"], part["columns"])
        if set(part["formats"].values()) == {UNQUANTIZED}:
            substitutes = f"no GGUF type has blocks that fit; they stay at 16 bits ({UNQUANTIZED})"
        lines.append(f"{part['layers']} of {layers} layers have rows of {part['columns']} columns: {substitutes}")
    return lines


def unfitting_warning(requested: Mapping[str, tuple[int, Sequence[str]]]) -> str:
    """Return one line that counts the layers that do not fit a requested format and names their substitutes; "" if all fit.

    `requested` is {layer: (columns, requested formats)}.
    """
    unfit = {
        layer: (columns, other)
        for layer, (columns, formats) in requested.items()
        if (other := [form for form in formats if fitting_format(form, columns) != form])
    }
    by_length: dict[int, list[str]] = {}
    for columns, forms in unfit.values():
        by_length.setdefault(columns, []).extend(forms)
    alike: dict[str, list[str]] = {}
    for columns, forms in sorted(by_length.items()):
        alike.setdefault(_arrows(forms, columns), []).append(str(columns))
    substitutes = ". ".join(f"{', '.join(lengths)} columns: {arrows}" for arrows, lengths in alike.items())
    what = f"{len(unfit)} of {len(requested)} layers {UNFIT}"
    return f"{what}, and get llama.cpp's substitute. {substitutes}" if unfit else ""


def _arrows(names: Iterable[str], columns: int) -> str:
    """Return "q2_k, q3_k -> q4_0; q4_k -> q5_0"."""
    return "; ".join(f"{', '.join(requested)} -> {used}" for used, requested in fitting_formats(names, columns).items())
