"""The palette `runtime`: what a plan may choose from if several runtimes are to hold it as it was simulated. Needs no heavy package.

Of every format of the table that is stored in blocks, integers in groups of 32 and of 128, those are held that every runtime's own
verdict calls exact, or exact in more bits, wherever the file is loaded. Of formats of one kind that all take the same bits there, the one
with most bits of its own is left: nothing is gained by fewer. Of equals it is the scale rule of least error (`_mse`), else the first in the table.
Ternary types are left out, which are for models that were trained in three values; a palette may name them.
"""

from collections.abc import Iterator, Sequence

from bitplan.formats.facts import GGUF_TYPES, UNQUANTIZED
from bitplan.formats.importance import needing_importance
from bitplan.formats.pairs import parse_pair
from bitplan.formats.sizes import SIZES
from bitplan.runtimes.runtime import Runtime

SMALL_GROUP = 32
TERNARY = ("tq1_0", "tq2_0")


def palette_of_runtimes(runtimes: Sequence[Runtime], importance: bool = True) -> tuple[str, ...]:
    """Return the candidates that all runtimes hold, from few stored bits to many; without runtimes none, and 16 bits alone is a palette too.

    Formats that need an importance matrix are left out without `importance`.
    """
    best: dict[tuple[str, float], str] = {}
    for candidate in candidates() if runtimes else ():
        if not importance and needing_importance([candidate]):
            continue
        bits = held_bits(candidate, runtimes)
        if bits is not None:
            place = (_kind(candidate), bits)
            best[place] = max(best.get(place, candidate), candidate, key=_preference)
    return tuple(name for _, name in sorted(best.items(), key=lambda item: (item[0][1], _own_bits(item[1]))))


def candidates() -> Iterator[str]:
    """Yield the candidates that a palette of runtimes is chosen from, in the table's order."""
    for name, size in SIZES.items():
        if size.scope == "block" and name not in TERNARY:
            yield from (f"{name}_g{SMALL_GROUP}", name) if _kind(name).startswith("int") else (name,)


def held_bits(candidate: str, runtimes: Sequence[Runtime]) -> float | None:
    """Return the most bits per weight that the runtimes store a candidate in; None where one of them does not hold it in every case."""
    verdicts = [runtime.holds(candidate) for runtime in runtimes]
    held = all(verdict.is_exact and verdict.always for verdict in verdicts)
    return max(verdict.stored_bits for verdict in verdicts) if held else None


def narrowest_bits(palette: Sequence[str], runtimes: Sequence[Runtime]) -> float:
    """Return the fewest bits per weight that a candidate of a palette takes in all runtimes."""
    return min(max(runtime.holds(name).stored_bits for runtime in runtimes) for name in palette)


def quantizes(palette: Sequence[str]) -> bool:
    """Return whether a palette has a format that saves anything over 16 bits."""
    return any(_own_bits(name) < SIZES[UNQUANTIZED].element_bits for name in palette)


def _kind(candidate: str) -> str:
    """Return "nvfp4", "gguf", "mx", "int_asym", "int" or "float": formats of one kind differ in bits, blocks and how scales are chosen."""
    name = parse_pair(candidate).wq
    if "nvfp4" in name:
        return "nvfp4"
    if name in GGUF_TYPES:
        return "gguf"
    kinds = {"mx": "mx", "int": "int_asym" if "_asym" in name else "int"}
    return next((kind for start, kind in kinds.items() if name.startswith(start)), "float")


def _own_bits(candidate: str) -> float:
    pair = parse_pair(candidate)
    return SIZES[pair.wq].bits_per_value(pair.group_size)


def _preference(candidate: str) -> tuple[float, bool]:
    return _own_bits(candidate), candidate.endswith("_mse")
