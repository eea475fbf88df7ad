"""The importance matrix: mean x^2 of every input column of every layer, on calibration text."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitplan.files import written_aside


def write_importance(path: Path, columns: Mapping[str, Tensor]) -> None:
    """Write {layer: (in,)} as float32 safetensors."""
    from safetensors.torch import save_file

    with written_aside(path) as aside:
        save_file({name: values.to(torch.float32) for name, values in columns.items()}, aside)


def read_importance(path: Path | None) -> dict[str, Tensor]:
    """Return {layer: (in,)} float32; empty without a file."""
    if path is None:
        return {}
    from safetensors.torch import load_file

    return load_file(path)
