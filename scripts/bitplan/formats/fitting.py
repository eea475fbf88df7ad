"""The formats that rows of any length can have. A GGUF type with blocks needs rows that are a multiple of its block.

Where they are not, llama.cpp takes a type with blocks of 32 of about the same quality, and F16 where rows are no multiple of 32 either
(`tensor_type_fallback` in its llama-quant.cpp). A layer here gets the same, wherever a format is asked for: `fitting_format`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bitplan.formats.facts import UNQUANTIZED

# Values of a block.
BLOCKS: Mapping[str, int] = {
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"), 256),
    **dict.fromkeys(("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "gguf_mxfp4"), 32),
}
# llama.cpp's substitutes, also of types that no format of this project stands for.
SUBSTITUTES: Mapping[str, str] = {
    **dict.fromkeys(("q2_k", "q3_k", "tq1_0", "tq2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
}


def fitting_format(name: str, columns: int) -> str:
    """Return the format of rows of `columns` values where `name` is asked for: itself, its substitute, or "bf16" (left at 16 bits).

    Formats without a block of their own, and those that are not of this project, fit every row. Of weights/inputs (pairs.py) the
    format of the weights is the one that has to fit; that of the inputs stays.
    """
    weights, stroke, inputs = name.partition("/")
    tried = (weights, SUBSTITUTES.get(weights, UNQUANTIZED))
    used = next((form for form in tried if columns % BLOCKS.get(form, 1) == 0), UNQUANTIZED)
    return f"{used}{stroke}{inputs}"


def fitting_formats(names: Iterable[str], columns: int) -> dict[str, tuple[str, ...]]:
    """Return {format that fits: those of `names` that it stands for}, in the order in which they come first."""
    found: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(names):
        used = fitting_format(name, columns)
        found[used] = (*found.get(used, ()), name)
    return found


def substitution(asked: Sequence[str], used: str, columns: int) -> str:
    """Return how a format came into a plan, as "q2_k, q3_k -> q4_0: 64 columns"; "" where it is one of those asked for."""
    return "" if used in asked or not asked else f"{', '.join(asked)} -> {used}: {columns} columns"


def fitting_summary(columns: Sequence[int]) -> list[dict[str, Any]]:
    """Return, for each length of the layers' rows that not every format fits, how many layers have it and {format: substitute}."""
    found = []
    for length, layers in sorted(Counter(columns).items()):
        used = {name: fitting_format(name, length) for name in BLOCKS}
        if other := {name: form for name, form in used.items() if form != name}:
            found.append({"columns": length, "layers": layers, "formats": other})
    return found


def fitting_lines(summary: Iterable[Mapping[str, Any]], layers: int) -> list[str]:
    """Return the summary's lines for a terminal: which of so many layers get which substitutes; none where every format fits."""
    lines = []
    for part in summary:
        told = _arrows(part["formats"], part["columns"])
        if set(part["formats"].values()) == {UNQUANTIZED}:
            told = f"no GGUF type has blocks that fit; they stay at 16 bits ({UNQUANTIZED})"
        lines.append(f"{part['layers']} of {layers} layers have rows of {part['columns']} columns: {told}")
    return lines


def unfitting_warning(asked: Mapping[str, tuple[int, Sequence[str]]]) -> str:
    """Return one line that says how many layers do not fit a format asked of them, and what they get instead; "" where all do.

    `asked` has the columns and the formats asked for of every layer.
    """
    unfit = {
        layer: (columns, other)
        for layer, (columns, wanted) in asked.items()
        if (other := [form for form in wanted if fitting_format(form, columns) != form])
    }
    by_length: dict[int, list[str]] = {}
    for columns, forms in unfit.values():
        by_length.setdefault(columns, []).extend(forms)
    alike: dict[str, list[str]] = {}
    for columns, forms in sorted(by_length.items()):
        alike.setdefault(_arrows(forms, columns), []).append(str(columns))
    told = ". ".join(f"{', '.join(lengths)} columns: {arrows}" for arrows, lengths in alike.items())
    what = f"{len(unfit)} of {len(asked)} layers have rows that do not fit a format asked for"
    return f"{what}, and get llama.cpp's substitute. {told}" if unfit else ""


def _arrows(names: Iterable[str], columns: int) -> str:
    """Return "q2_k, q3_k -> q4_0; q4_k -> q5_0"."""
    return "; ".join(f"{', '.join(asked)} -> {used}" for used, asked in fitting_formats(names, columns).items())
