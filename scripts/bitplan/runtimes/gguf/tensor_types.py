"""Which GGUF type stands for weights that no type holds: the one whose error is nearest to a format's, or the smallest within an error."""

import math
from collections.abc import Container, Mapping
from types import MappingProxyType

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize

from bitplan.formats.base import Format
from bitplan.formats.ggml import block_of, decode, encode
from bitplan.formats.table import IN_PLANS, PER_CHANNEL
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.runtimes.gguf.file import layer_names
from bitplan.runtimes.gguf.format_types import bits_of_type, file_type, is_exact
from bitplan.runtimes.gguf.tensor_data import release_pages

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

    return min(fitting, key=distance, default=file_type(form))


def nearest_types(
    reader: GGUFReader,
    info: ModelInfo,
    plan: Plan,
    factors: Mapping[str, np.ndarray] = MappingProxyType({}),
    formats: Mapping[str, Format] = IN_PLANS,
    held: Container[str] = frozenset(),
) -> dict[str, str]:
    """Return {layer: GGUF type} for the layers whose format no type holds exactly, each judged on up to 256 of its rows.

    `factors` are those of the tensors' columns that are folded into the file; layers of `held` are not looked at.
    """
    layers, found = layer_names(reader, info), {}
    for tensor in reader.tensors:
        for place, layer in enumerate(layers.get(tensor.name, ())):
            made = plan.of(layer)
            if layer in held or not made.weights_change or is_exact(formats[made.wq]) or made.wq == PER_CHANNEL:
                continue
            values = _some_rows(tensor, place, len(layers[tensor.name])) * factors.get(tensor.name, np.float32(1))
            found[layer] = nearest_type(np.ascontiguousarray(values, np.float32), made, formats[made.wq])
        release_pages(reader)
    return found


def _some_rows(tensor: ReaderTensor, place: int, held: int) -> np.ndarray:
    """Return up to 256 rows, evenly picked, of one of the matrices that a tensor holds, float32."""
    data = tensor.data[place] if held > 1 else tensor.data.reshape(-1, tensor.data.shape[-1])
    return np.ascontiguousarray(dequantize(data[:: -(-len(data) // ROWS)], tensor.tensor_type), dtype=np.float32)


def smallest_type(values: np.ndarray, most: float) -> str:
    """Return the type of fewest bits whose squared error on `values` (out, in), as a share of their squares, is at most `most`."""
    fitting = [name for name in CANDIDATES if values.shape[1] % block_of(GGMLQuantizationType[name])[0] == 0]
    squares = float(np.square(values, dtype=np.float64).mean())
    for name in sorted(fitting, key=bits_of_type):
        kind = GGMLQuantizationType[name]
        if _error(values, decode(encode(values, kind), kind)) <= most * squares:
            return name
    return "F16"


def smallest_types(reader: GGUFReader, info: ModelInfo, plan: Plan, most: float) -> dict[str, str]:
    """Return {layer: GGUF type} for the layers with a width per channel: the smallest within the error, judged on up to 256 rows.

    `reader` holds the compressed values. Experts that one tensor holds get the type of the one that needs most bits.
    """
    layers, found = layer_names(reader, info), {}
    for tensor in reader.tensors:
        held = [name for name in layers.get(tensor.name, ()) if plan.of(name).wq == PER_CHANNEL]
        places = [layers[tensor.name].index(name) for name in held]
        types = [smallest_type(_some_rows(tensor, place, len(layers[tensor.name])), most) for place in places]
        found |= dict.fromkeys(held, max(types, key=bits_of_type, default=""))
        release_pages(reader)
    return found
