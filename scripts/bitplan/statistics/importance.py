"""The importance matrix: mean x^2 of every input column of every layer, on calibration text."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.safetensors_io import read_tensors, write_tensors
from bitplan.models.layers import Layer

MADE_BY = "Create it with scripts/layer_stats.py"


def write_importance(path: Path, columns: Mapping[str, Tensor]) -> None:
    """Write {layer: (in,)} as float32 safetensors."""
    write_tensors(path, {name: values.to(torch.float32) for name, values in columns.items()})


def read_importance(path: Path | None, layers: Iterable[Layer]) -> dict[str, Tensor]:
    """Return {layer: (in,)} float32; empty without a file. Raises `UserError` when it is not the one of these layers.

    A layer that no token reached (an expert) is left out: it is quantized as without an importance matrix.
    """
    if path is None:
        return {}
    columns = read_tensors(path, "IMATRIX-INVALID", "an importance matrix", MADE_BY)
    for layer in layers:
        held, wanted = columns.get(layer.name), (layer.shape[1],)
        if held is None or tuple(held.shape) != wanted or held.dtype != torch.float32:
            what = f"does not have {wanted[0]} float32 values for {layer.name}"
            raise user_error(
                "IMATRIX-OTHER-MODEL",
                path,
                what,
                f"Not an importance matrix, or it belongs to another model. {MADE_BY}",
            )
        if not held.isfinite().all() or (held < 0).any():
            what = f"has values for {layer.name} that are not finite mean squares"
            raise user_error(
                "IMATRIX-NOT-FINITE", path, what, "Create it again with scripts/layer_stats.py --dtype bf16 or fp32"
            )
    return {name: values for name, values in columns.items() if values.any()}
