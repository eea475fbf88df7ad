"""Which GGUF type comes nearest to a format on a given matrix: by the squared error, not by the number of bits."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize

from bitplan.export.gguf_file import layer_names
from bitplan.formats.base import Format
from bitplan.formats.ggml import block_of, decode, encode
from bitplan.formats.table import FORMATS
from bitplan.models.layers import ModelInfo
from bitplan.plan import LayerPlan, Plan

# From few bits to many: of two that are equally near, the smaller one is taken.
CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_0", "IQ4_NL", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0")
ROWS = 256


def _error(values: np.ndarray, made: np.ndarray) -> float:
    return float(np.square(values - made, dtype=np.float64).mean())


def nearest_type(values: np.ndarray, made: LayerPlan, form: Format) -> str:
    """Return the type whose mean squared error on `values` (out, in) float32 is nearest, as a ratio, to the format's own."""
    wanted = _error(values, form.roundtrip(torch.from_numpy(values), made.group_size).numpy())
    fitting = [name for name in CANDIDATES if values.shape[1] % block_of(GGMLQuantizationType[name])[0] == 0]

    def distance(name: str) -> float:
        kind = GGMLQuantizationType[name]
        error = _error(values, decode(encode(values, kind), kind))
        return abs(math.log(max(error, 1e-30) / max(wanted, 1e-30)))

    return min(fitting, key=distance, default=form.gguf_type)


def nearest_types(
    reader: GGUFReader,
    info: ModelInfo,
    plan: Plan,
    factors: Mapping[str, np.ndarray] = MappingProxyType({}),
    formats: Mapping[str, Format] = FORMATS,
) -> dict[str, str]:
    """Return {layer: GGUF type} for the layers whose format no type holds exactly, each judged on up to 256 of its rows.

    `factors` are those of the tensors' columns that are folded into the file."""
    layers, found = layer_names(reader, info), {}
    for tensor in reader.tensors:
        for place, layer in enumerate(layers.get(tensor.name, ())):
            made = plan.of(layer)
            if not made.weights_change or formats[made.wq].exact_in_gguf:
                continue
            data = tensor.data[place] if len(layers[tensor.name]) > 1 else tensor.data
            some = dequantize(data[:: -(-len(data) // ROWS)], tensor.tensor_type) * factors.get(tensor.name, 1.0)
            values = np.ascontiguousarray(some, dtype=np.float32)
            found[layer] = nearest_type(values, made, formats[made.wq])
    return found
