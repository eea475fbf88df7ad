"""SmoothQuant's factors in a GGUF file: matrices multiplied by column, the norms before them divided."""

from collections.abc import Mapping

import numpy as np
from gguf import GGUFReader

from bitplan.core.errors import user_error
from bitplan.models.layers import ModelInfo
from bitplan.plans.smoothing import SmoothGroup, Smoothing
from bitplan.runtimes.gguf.file import architecture_names, is_part, layer_names


def _norm_tensors(names, group: SmoothGroup, held: set[str]) -> list[str]:
    """Return the file's tensors of a group's norm: its weight, and its bias where there is one."""
    return [name for end in ("weight", "bias") if (name := f"{names.get_name(group.norm)}.{end}") in held]


def column_factors(reader: GGUFReader, info: ModelInfo, smoothing: Smoothing | None) -> Mapping[str, np.ndarray]:
    """Return {tensor: factor (in,) float32 of its columns} for everything that folding changes; a norm is one row of columns.

    What is divided at a layer's input cannot be stored and is left out. Raises `UserError` where a norm or a reader of it has no
    tensor of its own in the file.
    """
    if smoothing is None:
        return {}
    names, held = architecture_names(reader), {tensor.name for tensor in reader.tensors}
    of_layers = {tensor: layers for tensor, layers in layer_names(reader, info).items() if not is_part(tensor)}
    tensor_of = {layer: tensor for tensor, layers in of_layers.items() for layer in layers}
    factors: dict[str, np.ndarray] = {}
    for group in smoothing.folded.groups:
        norms = _norm_tensors(names, group, held)
        absent = [layer for layer in group.layers if layer not in tensor_of]
        if absent or not norms:
            what = f"has no tensor for {(absent or [group.norm])[0]}, which must absorb the smoothing factors"
            raise user_error("GGUF-NO-FOLDING", "the GGUF file", what, "Search without smoothing for this family")
        scale = group.scale.numpy()
        factors |= {tensor_of[layer]: scale for layer in group.layers} | dict.fromkeys(norms, 1.0 / scale)
    return factors
