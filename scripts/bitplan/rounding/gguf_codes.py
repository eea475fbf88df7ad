"""Writes rounded codes into the tensors of a GGUF file: the same codes and scales in llama.cpp's blocks, row by row.

A converter may permute the rows of a matrix (llama.cpp does so for the queries and keys of Llama). Rows are therefore matched by
their full-precision values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.formats.ggml import block_of
from bitplan.formats.table import FORMATS
from bitplan.plans.rounded import RoundedLayer, RoundedModel
from bitplan.rounding.gguf_blocks import BLOCKS, codes_of, write_codes_

# Formats whose codes and scales a GGUF type with the same block represents exactly.
BLOCK = 32
TWINS = {
    **{f"mxfp4{rule}": "MXFP4" for rule in ("", "_rceil", "_mse")},
    **{"int4": "Q4_0", "int5": "Q5_0", "int7": "Q8_0", "int8": "Q8_0"},
}
BASE = "Leave out the base file, or convert it again in the checkpoint's own precision"


def represents(form: str, group: int, kind: str) -> bool:
    """Return whether a GGUF type represents the codes and scales of a format with blocks of `group` values exactly."""
    if FORMATS[form].family == "gguf":
        return FORMATS[form].gguf_type == kind
    return group == BLOCK and TWINS.get(form) == kind


def _scale_bytes(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the first bytes of each block (blocks, n) uint8: the scale, E8M0 for MX and float16 for integer formats."""
    if "exponent" in parts:
        return (parts["exponent"].to(torch.int32) + 127).to(torch.uint8).reshape(-1, 1)
    return parts["scale"].reshape(-1, 1).contiguous().view(torch.uint8)


def block_bytes(layer: RoundedLayer, kind: str) -> np.ndarray:
    """Return a rounded layer as rows of bytes of a GGUF type that `holds` it, (out, bytes per row) uint8."""
    parts = layer.quantized.parts
    if "data" in parts:
        return parts["data"].numpy()
    layout, scales = BLOCKS[kind], _scale_bytes(parts)
    blocks = torch.zeros(len(scales), block_of(GGMLQuantizationType[kind])[1], dtype=torch.uint8)
    blocks[:, : scales.shape[1]] = scales
    # MXFP4's table has doubled elements.
    elements = parts["codes"] if "codes" in parts else 2 * parts["elements"].to(torch.float32)
    write_codes_(blocks, codes_of(elements.reshape(len(blocks), -1), layout), layout)
    return blocks.reshape(layer.quantized.shape[0], -1).numpy()


def row_order(own: np.ndarray, stored: np.ndarray) -> list[int] | None:
    """Return for each row of `stored` the index of the same row in `own` (out, in), equal rows in order; None if one is missing."""
    places: dict[bytes, list[int]] = {}
    for place in reversed(range(len(own))):
        places.setdefault(own[place].tobytes(), []).append(place)
    try:
        return [places[row.tobytes()].pop() for row in stored]
    except (KeyError, IndexError):
        return None


@dataclass
class TensorCodes:
    """The rounded codes of a tensor's matrices, in the order of its `layers`; `original` returns a layer's weight (out, in) float32."""

    tensor: str
    layers: tuple[str, ...]
    kind: str
    rounded: RoundedModel
    original: Callable[[str], Tensor]
    _orders: dict[int, list[int]] = field(default_factory=dict)

    def matrix(self, number: int, values: np.ndarray) -> np.ndarray:
        """Return the bytes of a matrix whose full-precision rows in the file are `values`. Raises `UserError` if these differ."""
        name = self.layers[number]
        own = self.original(name).contiguous().numpy() + np.float32(0)  # -0 as 0
        order = row_order(own, np.ascontiguousarray(values, np.float32) + np.float32(0))
        if order is None:
            what = f"holds other values than the checkpoint's {name}, for which codes were rounded"
            raise user_error(f"tensor {self.tensor}", what, BASE)
        self._orders[number] = order
        return block_bytes(self.rounded.layer(name), self.kind)[order]

    def check(self, data: np.ndarray) -> None:
        """Raise AssertionError unless the tensor's data in the file decode exactly to the rounded values."""
        for number, matrix in enumerate(data.reshape(-1, *data.shape[-2:])):
            expected = self.rounded.weight(self.layers[number]).numpy()[self._orders[number]]
            if not np.array_equal(dequantize(matrix, GGMLQuantizationType[self.kind]), expected):
                raise AssertionError(
                    f"{self.tensor}: the file does not hold the rounded values of {self.layers[number]}"
                )
