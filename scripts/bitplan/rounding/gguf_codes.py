"""Writes rounded codes into the tensors of a GGUF file: the same codes and scales in llama.cpp's blocks, row by row.

A converter may permute the rows of a matrix (llama.cpp does so for the queries and keys of Llama). Rows are therefore matched by
their full-precision values.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.formats.facts import TYPE_NAMES
from bitplan.plans.rounded import RoundedLayer, RoundedModel
from bitplan.rounding.gguf_holders import packing_of
from bitplan.rounding.gguf_packing import pack

BASE = "Omit the base file or convert it again in the checkpoint's precision"


def represents(form: str, group: int, columns: int, kind: str) -> bool:
    """Return whether a GGUF type represents the codes and scales of a format with blocks of `group` values exactly."""
    if form in TYPE_NAMES:
        return TYPE_NAMES[form] == kind
    packing = packing_of(form, group, columns)
    return packing is not None and packing.kind == kind


def block_bytes(layer: RoundedLayer) -> np.ndarray:
    """Return a rounded layer as rows of bytes of the GGUF type that holds it, (out, bytes per row) uint8."""
    if layer.form in TYPE_NAMES:
        return layer.quantized.parts["data"].numpy()
    return pack(layer.quantized, layer.form, layer.group)


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
            what = f"differs from the checkpoint's {name}, for which the codes were computed"
            raise user_error("GGUF-OTHER-VALUES", f"tensor {self.tensor}", what, BASE)
        self._orders[number] = order
        return block_bytes(self.rounded.layer(name))[order]

    def check(self, data: np.ndarray) -> None:
        """Raise AssertionError unless the tensor's data in the file decode exactly to the rounded values."""
        for number, matrix in enumerate(data.reshape(-1, *data.shape[-2:])):
            expected = self.rounded.weight(self.layers[number]).numpy()[self._orders[number]]
            if not np.array_equal(dequantize(matrix, GGMLQuantizationType[self.kind]), expected):
                raise AssertionError(
                    f"{self.tensor}: the file does not hold the rounded values of {self.layers[number]}"
                )
