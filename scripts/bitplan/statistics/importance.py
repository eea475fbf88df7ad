"""The importance matrix: mean x^2 of every input column of every layer, on calibration text."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.files import write_aside
from bitplan.models.layers import Layer

MADE_BY = "Make it with scripts/layer_stats.py"


def write_importance(path: Path, importance: Mapping[str, Tensor]) -> None:
    """Write {layer: (in,)} as float32 safetensors."""
    from safetensors.torch import save_file

    with write_aside(path) as aside:
        save_file({name: values.to(torch.float32) for name, values in importance.items()}, aside)


def read_importance(path: Path | None, layers: Iterable[Layer]) -> dict[str, Tensor]:
    """Return {layer: (in,)} float32; empty if `path` is None. Raises `UserError` if it does not belong to these layers.

    A layer without tokens (an unused expert) is left out and quantized without importance.
    """
    if path is None:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        importance = load_file(path)
    except (OSError, SafetensorError) as error:
        raise user_error(path, f"is no importance matrix: {error}", MADE_BY) from None
    for layer in layers:
        values, expected = importance.get(layer.name), (layer.shape[1],)
        if values is None or tuple(values.shape) != expected or values.dtype != torch.float32:
            what = f"has no {expected[0]} values of float32 for {layer.name}"
            raise user_error(path, what, f"It is none, or of another model. {MADE_BY}")
        if not values.isfinite().all() or (values < 0).any():
            what = f"holds values for {layer.name} that are no finite mean squares"
            raise user_error(path, what, "Make it again with scripts/layer_stats.py --dtype bf16 or fp32")
    return {name: means for name, means in importance.items() if means.any()}
