"""Layers whose rows do not fit the requested format: they get a substitute, and a note with the requested format."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from bitplan.formats.fitting import fitting_format, fitting_formats, substitution, unfitting_warning
from bitplan.models.layers import Layer, ModelInfo

log = logging.getLogger(__name__)
# The key of a layer's note in a plan.
SUBSTITUTE = "substitute"
LayerPlan = TypeVar("LayerPlan")


def fit_layers(chosen: Mapping[str, LayerPlan], layers: Iterable[Layer]) -> dict[str, LayerPlan]:
    """Return the plans of layers with weight formats that fit their rows; a layer's note `substitute` names the requested format."""
    plans = dict(chosen)
    for layer in layers:
        requested = plans[layer.name].wq
        used = fitting_format(requested, layer.shape[1])
        if used != requested:
            notes = {**plans[layer.name].notes, **substitute_note((requested,), used, layer)}
            plans[layer.name] = replace(plans[layer.name], wq=used, notes=notes)
    return plans


def substitute_note(requested: Sequence[str], used: str, layer: Layer) -> dict[str, str]:
    """Return the note of a layer with the format `used`: the requested formats that it replaces; empty if it was requested itself."""
    columns = layer.shape[1]
    note = substitution(fitting_formats(requested, columns).get(used, ()), used, columns)
    return {SUBSTITUTE: note} if note else {}


def warn_of_formats(formats: Sequence[str], info: ModelInfo, embeddings: Sequence[str] = ()) -> None:
    """Warn once of layers whose rows do not fit some of the requested weight formats.

    `embeddings` are the formats requested for the token embedding and the output matrix.
    """
    requested = {layer.name: (layer.shape[1], formats) for layer in info.quantizable}
    extra = {layer.name: (layer.shape[1], embeddings) for layer in info.layers if layer.is_embedding and not layer.tied}
    _warn("", requested | (extra if embeddings else {}))


def warn_of_plan(source: str, chosen: Mapping[str, Any], layers: Iterable[Layer]) -> None:
    """Warn once of layers whose rows do not fit the weight format in their plan."""
    free = (layer for layer in layers if not layer.tied and (not layer.protected or chosen[layer.name].embeddings))
    _warn(f"{source}: ", {layer.name: (layer.shape[1], (chosen[layer.name].wq,)) for layer in free})


def substituted(chosen: Mapping[str, Any], layers: Iterable[Layer]) -> str:
    """Return one line on the layers of a plan that have a substitute for the format chosen for them; "" if none has."""
    own = [layer.name for layer in layers if not layer.tied]
    notes = [chosen[name].notes[SUBSTITUTE] for name in own if name in chosen and SUBSTITUTE in chosen[name].notes]
    parts = [note.removesuffix(" columns").rpartition(": ") for note in set(notes)]
    arrows = ", ".join(sorted({arrow for arrow, _, _ in parts}))
    columns = " and ".join(map(str, sorted({int(length) for _, _, length in parts})))
    what = f"{len(notes)} of {len(own)} layers have rows of {columns} columns, which the format chosen for them does not fit"
    return f"{what}, and get llama.cpp's substitute ({arrows})" if notes else ""


def _warn(where: str, requested: Mapping[str, tuple[int, Sequence[str]]]) -> None:
    warning = unfitting_warning(requested)
    if warning:
        log.warning("%s%s", where, warning)
