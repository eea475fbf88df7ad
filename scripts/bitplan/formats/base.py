"""The definition of a number format: its exact size, and its functions quantize and dequantize."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitplan.formats.sizes import Sized


@dataclass(frozen=True)
class Quantized:
    """A matrix in a format: the stored parts by name, and the shape `(out, in)` that they decode to."""

    parts: Mapping[str, Tensor]
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Memory taken by the parts, in bytes (`Format.bits_of` gives the size on disk)."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())


# quantize(values (out, in) float32, group_size, importance (in,) or None) -> Quantized
Quantize = Callable[[Tensor, int, Tensor | None], Quantized]
# dequantize(quantized, group_size) -> (out, in) float32
Dequantize = Callable[[Quantized, int], Tensor]
# pack(quantized) -> the same values in less memory, for caching
Pack = Callable[[Quantized], Quantized]


def keep_parts(quantized: Quantized) -> Quantized:
    """Return `quantized` itself: for formats whose parts are already small."""
    return quantized


@dataclass(frozen=True)
class Format(Sized):
    """A number format of the table.

    `element_bits` are the bits of one value; `scale_bits` are stored once per block of `block` values along `in`
    (0: no scales). A `fixed_block` cannot be changed by a plan's group size, and rows must be a multiple of it.
    `scope` is the range of a scale: a block, a row ("row": a token of activations) or the whole matrix ("tensor": a window
    of activations, so that results do not depend on how windows are batched). `matrix_bits` are stored once per matrix besides, for what
    `fit` reads from the whole matrix: it returns the format with that fixed, for quantizing some of the columns alone.
    """

    name: str
    family: str
    element_bits: float
    scale_bits: int
    block: int
    quantize: Quantize
    dequantize: Dequantize
    for_activations: bool
    fixed_block: bool = False
    pack: Pack = keep_parts
    scope: str = "block"
    matrix_bits: int = 0
    fit: "Callable[[Format, Tensor], Format] | None" = None

    @property
    def rows_are_independent(self) -> bool:
        """Whether a row's values do not depend on other rows."""
        return self.scope != "tensor" and self.fit is None

    def fitted(self, values: Tensor) -> "Format":
        """Return the format for parts of a matrix `values` (out, in): all are quantized as within the whole."""
        return self if self.fit is None else self.fit(self, values)

    def roundtrip(self, values: Tensor, group_size: int | None = None, importance: Tensor | None = None) -> Tensor:
        """Return `values` (..., in) quantized and dequantized, float32."""
        if self.scope == "tensor" and values.dim() > 2:
            return torch.stack([self.roundtrip(window, group_size, importance) for window in values])
        flat = values.detach().reshape(-1, values.shape[-1]).to(torch.float32)
        group = self.group(group_size)
        return self.dequantize(self.quantize(flat, group, importance), group).reshape(values.shape)


def blocks_of(values: Tensor, group: int) -> Tensor:
    """Return `(out, in)` as `(out, blocks, group)`; the last block of a row is padded with zeros."""
    rows, columns = values.shape
    short = -columns % group
    padded = torch.nn.functional.pad(values, (0, short)) if short else values
    return padded.reshape(rows, -1, group)


def rows_of(blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return `(out, blocks, group)` as `(out, in)` without the padding."""
    return blocks.reshape(shape[0], -1)[:, : shape[1]]
