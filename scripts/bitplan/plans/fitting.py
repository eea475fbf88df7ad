"""Layers of a plan whose rows do not fit the format asked for: they get the one that fits, and a note of what was asked."""

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


def fitted_layers(chosen: Mapping[str, LayerPlan], layers: Iterable[Layer]) -> dict[str, LayerPlan]:
    """Return the plans of layers with weight formats that their rows fit; `substitute` in a layer's notes says what was asked for."""
    made = dict(chosen)
    for layer in layers:
        asked = made[layer.name].wq
        used = fitting_format(asked, layer.shape[1])
        if used != asked:
            notes = {**made[layer.name].notes, **substitute_note((asked,), used, layer)}
            made[layer.name] = replace(made[layer.name], wq=used, notes=notes)
    return made


def substitute_note(asked: Sequence[str], used: str, layer: Layer) -> dict[str, str]:
    """Return the note of a layer that has the format `used`: for which of those asked for it stands, nothing where it is one of them."""
    columns = layer.shape[1]
    told = substitution(fitting_formats(asked, columns).get(used, ()), used, columns)
    return {SUBSTITUTE: told} if told else {}


def warn_of_formats(formats: Sequence[str], info: ModelInfo, embeddings: Sequence[str] = ()) -> None:
    """Warn, once, of layers whose rows do not fit some of the weight formats that every layer is asked for.

    `embeddings` are those asked of the token embedding and the output matrix.
    """
    asked = {layer.name: (layer.shape[1], formats) for layer in info.quantizable}
    beside = {
        layer.name: (layer.shape[1], embeddings) for layer in info.layers if layer.is_embedding and not layer.tied
    }
    _warn("", asked | (beside if embeddings else {}))


def warn_of_plan(source: str, chosen: Mapping[str, Any], layers: Iterable[Layer]) -> None:
    """Warn, once, of layers whose rows do not fit the weight format that a plan asks for them."""
    free = (layer for layer in layers if not layer.tied and (not layer.protected or chosen[layer.name].embeddings))
    _warn(f"{source}: ", {layer.name: (layer.shape[1], (chosen[layer.name].wq,)) for layer in free})


def _warn(where: str, asked: Mapping[str, tuple[int, Sequence[str]]]) -> None:
    told = unfitting_warning(asked)
    if told:
        log.warning("%s%s", where, told)
