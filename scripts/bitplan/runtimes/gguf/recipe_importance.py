"""The importance matrix by the names that tensors have in a GGUF file: what llama.cpp's own recipes are given."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bitplan.models.layers import ModelInfo
from bitplan.runtimes.gguf.export import check_shapes
from bitplan.runtimes.gguf.file import layer_names, read_gguf


def importance_by_tensor(base: Path, info: ModelInfo, importance: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return {tensor of the file: mean x^2 per column} of {layer: (in,)}, float32; (in,), of experts (experts x in,).

    An expert that no token reached has ones, as llama.cpp's own tool writes it. The embedding and the output matrix have no inputs
    that were measured, and are left out. Raises `UserError` for a file of another model.
    """
    reader = read_gguf(base)
    check_shapes(reader, base, info)
    width = {layer.name: layer.shape[1] for layer in info.layers}
    return {
        tensor: np.concatenate([importance.get(name, np.ones(width[name], np.float32)) for name in layers])
        for tensor, layers in layer_names(reader, info).items()
        if any(name in importance for name in layers)
    }
