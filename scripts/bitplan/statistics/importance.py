"""The importance matrix: mean x^2 of every input column of every layer, on calibration text."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.safetensors_io import read_tensors, write_tensors
from bitplan.models.layers import Layer

MADE_BY = "Create it with scripts/layer_stats.py"


def write_importance(path: Path, importance: Mapping[str, Tensor]) -> None:
    """Write {layer: (in,)} as float32 safetensors."""
    write_tensors(path, {name: values.to(torch.float32) for name, values in importance.items()})


def read_importance(path: Path | None, layers: Iterable[Layer]) -> dict[str, Tensor]:
    """Return {layer: (in,)} float32; empty if `path` is None. Raises `UserError` if it does not belong to these layers.

    A layer without tokens (an unused expert) is left out and quantized without importance.
    """
    if path is None:
        return {}
    importance = read_tensors(path, "IMATRIX-INVALID", "an importance matrix", MADE_BY)
    for layer in layers:
        values, expected = importance.get(layer.name), (layer.shape[1],)
        if values is None or tuple(values.shape) != expected or values.dtype != torch.float32:
            what = f"does not have {expected[0]} float32 values for {layer.name}"
            raise user_error(
                "IMATRIX-OTHER-MODEL",
                path,
                what,
                f"Not an importance matrix, or it belongs to another model. {MADE_BY}",
            )
        if not values.isfinite().all() or (values < 0).any():
            what = f"has values for {layer.name} that are not finite mean squares"
            raise user_error(
                "IMATRIX-NOT-FINITE", path, what, "Create it again with scripts/layer_stats.py --dtype bf16 or fp32"
            )
    return {name: means for name, means in importance.items() if means.any()}
