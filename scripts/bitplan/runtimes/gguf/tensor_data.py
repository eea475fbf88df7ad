"""A tensor's data in another GGUF type, made some rows at a time while it is written: no tensor is in memory as a whole."""

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize, quantize

from bitplan.core.errors import user_error
from bitplan.formats.ggml import encode
from bitplan.formats.table import FORMATS
from bitplan.plans.plan import LayerPlan
from bitplan.rounding.gguf_codes import TensorCodes
from bitplan.rounding.gguf_packing import pack

VALUES_AT_ONCE = 1 << 24
# cast(values (rows, columns) float32) -> the same rows as they are stored
FLOATS: Mapping[GGMLQuantizationType, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        GGMLQuantizationType.F32: lambda values: values,
        GGMLQuantizationType.F16: lambda values: values.astype(np.float16),
        GGMLQuantizationType.BF16: lambda values: quantize(values, GGMLQuantizationType.BF16),
    }
)


def release_pages(reader: GGUFReader) -> None:
    """Give back the memory of what was read of a mapped file. What is read again is read from the file again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        reader.data._mmap.madvise(mmap.MADV_DONTNEED)


def row_pieces(tensor: ReaderTensor) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (matrix, stored rows) that cover a tensor: matrix 0, or of a 3-D tensor (experts) each in its turn."""
    data = tensor.data
    matrices = data.reshape(-1, *data.shape[-2:]) if data.ndim > 1 else data.reshape(1, 1, -1)
    step = max(1, VALUES_AT_ONCE // int(tensor.shape[0]))
    for number, matrix in enumerate(matrices):
        for start in range(0, len(matrix), step):
            yield number, matrix[start : start + step]


@dataclass(frozen=True)
class TensorData:
    """A tensor in type `kind`, its columns multiplied by `factor` (in,), as `GGUFWriter.write_tensor_data` takes it.

    `importance` has mean x^2 (in,) for each of the tensor's matrices, or None; an expert that no calibration token reached has none
    either, and is quantized as without. With `codes` these are written, and nothing is rounded; with `packed` the values are quantized
    in that plan's format, whose codes the type holds.
    """

    tensor: ReaderTensor
    kind: GGMLQuantizationType
    nbytes: int
    importance: Sequence[np.ndarray | None] = ()
    threads: int = 1
    factor: np.ndarray | None = None
    codes: TensorCodes | None = None
    packed: LayerPlan | None = None

    def tofile(self, handle: BinaryIO) -> None:
        """Write the data. Raises `UserError` when the tensor contains NaN or Inf, or not the values that codes were rounded for."""
        if self.codes is not None:
            for number, rows in enumerate(self.tensor.data.reshape(-1, *self.tensor.data.shape[-2:])):
                made = self.codes.matrix(number, dequantize(rows, self.tensor.tensor_type))
                np.ascontiguousarray(made).tofile(handle)
            return
        weights = self._weights()
        for matrix, rows in row_pieces(self.tensor):
            np.ascontiguousarray(self._made(rows, weights.get(matrix))).tofile(handle)

    def _weights(self) -> dict[int, np.ndarray]:
        """Return the importance of each matrix that has one. A 3-D tensor with too few or too many is quantized without."""
        matrices = int(np.prod(self.tensor.shape[2:]))
        held = self.importance if matrices in (1, len(self.importance)) else ()
        divisor = 1 if self.factor is None else self.factor**2
        return {i: weight / divisor for i, weight in enumerate(held) if weight is not None and weight.any()}

    def _made(self, rows: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        stored = self.tensor.tensor_type
        if self.kind is stored and stored not in FLOATS:
            return rows
        values = dequantize(rows, stored)
        if not np.isfinite(values.sum(dtype=np.float32)):
            raise user_error(
                "MODEL-NOT-FINITE",
                f"tensor {self.tensor.name}",
                "contains NaN or Inf",
                "Use a checkpoint without NaN or Inf weights",
            )
        if self.factor is not None:
            values = values * self.factor
        elif self.kind is stored:
            return rows
        if self.packed is not None:
            return packed_rows(values, self.packed, self.kind, weight)
        cast = FLOATS.get(self.kind)
        return cast(values) if cast else encode(values, self.kind, weight, self.threads)


def packed_rows(
    values: np.ndarray, made: LayerPlan, kind: GGMLQuantizationType, weight: np.ndarray | None = None
) -> np.ndarray:
    """Return `values` (out, in) float32 in a plan's format as rows of bytes of a type that holds its codes.

    Raises AssertionError unless gguf's own decoder makes the format's very values of them.
    """
    form = FORMATS[made.wq]
    group = form.group(made.group_size)
    importance = None if weight is None else torch.from_numpy(np.ascontiguousarray(weight, np.float32))
    quantized = form.quantize(torch.from_numpy(np.ascontiguousarray(values, np.float32)), group, importance)
    rows = pack(quantized, made.wq, group)
    if not np.array_equal(dequantize(rows, kind), form.dequantize(quantized, group).numpy()):
        raise AssertionError(f"{kind.name} does not hold the values of {made.wq}")
    return rows
