"""GGUF types, quantized by llama.cpp's own code: a search sees exactly the values that the file stores.

`ggml_quantize_chunk` of llama-cpp-python's libggml-base encodes, and `gguf.quants` decodes. The library does not check
that rows are a multiple of the type's block; `check_columns` does. Other rows get a substitute (fitting.py).
"""

import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.formats.base import Dequantize, Quantize, Quantized
from bitplan.formats.facts import NEED_IMPORTANCE
from bitplan.formats.fitting import SUBSTITUTES

ROWS_PER_CHUNK_VALUES = 1 << 20
LIBRARY_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


@cache
def library() -> ctypes.CDLL:
    """Return the runtime's libggml-base. Raises `UserError` when llama-cpp-python is not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(place) / "lib" for place in (spec.submodule_search_locations or [])] if spec else []
    paths = [path for folder in folders for name in LIBRARY_NAMES if (path := folder / name).is_file()]
    if not paths:
        raise user_error(
            "GGUF-NO-LIBRARY",
            "llama-cpp-python",
            "is not installed, but is needed to quantize GGUF types",
            "Run `make setup`",
        )
    base = ctypes.CDLL(str(paths[0]))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    base.ggml_quantize_init.argtypes = [ctypes.c_int]
    return base


def block_of(kind: GGMLQuantizationType) -> tuple[int, int]:
    """Return (values, bytes) of one block of a GGUF type."""
    return gguf.GGML_QUANT_SIZES[kind]


def check_columns(kind: GGMLQuantizationType, columns: int) -> None:
    """Raise `UserError`, which names a type that fits, unless `columns` is a multiple of the type's block."""
    block, _ = block_of(kind)
    if columns % block:
        what = f"{columns} columns are not a multiple of {kind.name}'s block of {block}"
        raise user_error("FORMAT-COLUMNS", "matrix", what, f"Use {fallback(kind, columns).name.lower()}, which fits")


def fallback(kind: GGMLQuantizationType, columns: int) -> GGMLQuantizationType:
    """Return the type that llama.cpp would use for rows of `columns` values: `kind`, a type with blocks of 32, or F16."""
    second = GGMLQuantizationType[SUBSTITUTES.get(kind.name.lower(), "f16").upper()]
    tried = (form for form in (kind, second) if columns % block_of(form)[0] == 0)
    return next(tried, GGMLQuantizationType.F16)


def encode(
    values: np.ndarray, kind: GGMLQuantizationType, importance: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """Return `values` (out, in) float32 as rows of bytes (out, bytes per row) uint8 of a quantized type.

    `importance` (in,) weights the squared error of each column (mean x^2 of calibration activations); types that need one weight all
    columns alike without it (an expert that no token reached; plans are checked by formats/importance.py). Rows are divided among
    `threads`; the library releases the interpreter lock, and the bytes do not depend on the number of threads.
    """
    rows, columns = values.shape
    block, size = block_of(kind)
    check_columns(kind, columns)
    base = library()
    base.ggml_quantize_init(int(kind))
    source = np.ascontiguousarray(values, dtype=np.float32)
    if importance is None and kind.name.lower() in NEED_IMPORTANCE:
        importance = np.ones(columns)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    target = np.empty((rows, columns // block * size), dtype=np.uint8)
    pointer = None if weights is None else weights.ctypes.data

    def chunk(start: int, stop: int) -> None:
        base.ggml_quantize_chunk(
            int(kind), source.ctypes.data, target.ctypes.data, start * columns, stop - start, columns, pointer
        )

    step = max(1, min(-(-rows // threads), ROWS_PER_CHUNK_VALUES // columns))
    starts = range(0, rows, step)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda start: chunk(start, min(start + step, rows)), starts))
    return target


def decode(data: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Return rows of bytes of a GGUF type as float32 `(out, in)`."""
    return gguf.dequantize(data, kind)


def encoder(name: str) -> Quantize:
    """Return the quantizer of a GGUF type, e.g. "Q4_K"."""
    kind = GGMLQuantizationType[name]

    def quantize(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
        weights = None if importance is None else importance.cpu().numpy()
        data = encode(values.cpu().numpy(), kind, weights, threads=torch.get_num_threads())
        return Quantized({"data": torch.from_numpy(data)}, tuple(values.shape))

    return quantize


def decoder(name: str) -> Dequantize:
    """Return the decoder of a GGUF type."""
    kind = GGMLQuantizationType[name]

    def dequantize(quantized: Quantized, group: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(decode(quantized.parts["data"].numpy(), kind), dtype=np.float32))

    return dequantize
