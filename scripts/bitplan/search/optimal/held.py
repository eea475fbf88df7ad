"""What runtimes that are to hold a plan leave of a table's choices, what these take there, and which layers they store as one."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace

import numpy as np

from bitplan.core.errors import user_error
from bitplan.formats.pairs import parse_pair
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.layer_plan import LayerPlan
from bitplan.runtimes.runtime import Runtime, Verdict
from bitplan.sensitivity.table import SensitivityTable


def shared_in(runtimes: Sequence[Runtime]) -> str | None:
    """Return what layers share a format so that runtimes can store them as one; None without runtimes."""
    if not runtimes:
        return None
    return "fusion" if any(runtime.fuses == "all" for runtime in runtimes) else "experts"


def held_table(
    table: SensitivityTable, runtimes: Sequence[Runtime], info: ModelInfo, stored: bool = False
) -> SensitivityTable:
    """Return a table without the choices that a runtime refuses; with `stored` each choice has the most bytes that they store it in.

    A layer without any choice left is not in the table: it stays at 16 bits. Raises `UserError` where no layer has one.
    """
    layers = {layer.name: layer for layer in info.layers}
    may, size = np.zeros(table.kld.shape, dtype=bool), table.size.copy()
    for row, column in np.argwhere(table.has):
        layer = layers[table.layers[row]]
        verdicts = list(_verdicts(layer, table.formats[column], runtimes, info))
        may[row, column] = all(verdict.status != "refused" for verdict in verdicts)
        if stored and may[row, column] and verdicts:
            size[row, column] = max(verdict.stored_bits for verdict in verdicts) * layer.params / 8
    if not may.any():
        names = ", ".join(runtime.name for runtime in runtimes)
        what = f"no layer of the model can have a format that {names} store"
        hint = "Choose other formats or groups that divide the rows, or fewer runtimes"
        raise user_error("RUNTIME-REFUSED", "palette", what, hint)
    held = replace(table, size=np.where(may, size, 0.0)).limited(may, table.formats)
    return _of_layers(held, held.has.any(axis=1))


def _verdicts(layer: Layer, candidate: str, runtimes: Sequence[Runtime], info: ModelInfo) -> Iterator[Verdict]:
    made = LayerPlan(*astuple(parse_pair(candidate)), embeddings=layer.protected)
    yield from (runtime.verdict(layer, made, info) for runtime in runtimes)


def _of_layers(table: SensitivityTable, kept: np.ndarray) -> SensitivityTable:
    """Return the rows of some layers, (L,) bool."""
    names, categories = (
        tuple(value for value, yes in zip(values, kept, strict=True) if yes)
        for values in (table.layers, table.categories)
    )
    arrays = {name: getattr(table, name)[kept] for name in ("params", "size", "kld")}
    sources = None if table.sources is None else table.sources[kept]
    return replace(table, layers=names, categories=categories, sources=sources, **arrays)
