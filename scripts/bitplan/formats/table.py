"""The table of number formats. A new format is one entry here plus its quantize and dequantize functions."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import torch

from bitplan.errors import nearest, user_error
from bitplan.formats import floating, ggml, integer, mx
from bitplan.formats.base import Format


def _float(name: str, dtype: torch.dtype, gguf_type: str) -> Format:
    return Format(
        name, "float", 16, 0, 1, floating.caster(dtype), floating.WIDEN, gguf_type, True, True, fixed_block=True
    )


def _mx(name: str, element: mx.Element, bits: int, gguf_type: str) -> Format:
    return Format(
        name, "mx", bits, 8, 32, mx.quantizer(element), mx.DEQUANTIZE, gguf_type, False, True, pack=mx.packer(element)
    )


def _int(bits: int, gguf_type: str) -> Format:
    return Format(
        f"int{bits}", "int", bits, 16, 128, integer.symmetric(bits), integer.DEQUANTIZE, gguf_type, False, False
    )


def _ggml(name: str, kind: str) -> Format:
    values, size = ggml.block_of(ggml.GGMLQuantizationType[kind])
    quantize, dequantize = ggml.encoder(kind), ggml.decoder(kind)
    return Format(name, "gguf", 8 * size / values, 0, values, quantize, dequantize, kind, True, False, fixed_block=True)


_ENTRIES = (
    _float("bf16", torch.bfloat16, "BF16"),
    _float("fp16", torch.float16, "F16"),
    # mxfp4's GGUF twin has the same codes and scales; only exact ties round differently (to even here, towards 0 there).
    _mx("mxfp4", mx.E2M1, 4, "MXFP4"),
    _mx("mxfp8", mx.E4M3, 8, "Q8_0"),
    *map(partial(_int), range(2, 9), ("Q2_K", "Q3_K", "Q4_0", "Q5_0", "Q6_K", "Q8_0", "Q8_0")),
    _ggml("q2_k", "Q2_K"),
    _ggml("q3_k", "Q3_K"),
    _ggml("q4_k", "Q4_K"),
    _ggml("q5_k", "Q5_K"),
    _ggml("q6_k", "Q6_K"),
    _ggml("q8_0", "Q8_0"),
    _ggml("q4_0", "Q4_0"),
    _ggml("gguf_mxfp4", "MXFP4"),
)
FORMATS: Mapping[str, Format] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
UNQUANTIZED = "bf16"


def format_named(name: str, formats: Mapping[str, Format] = FORMATS) -> Format:
    """Return the format called `name`. Raises `UserError` that names the nearest ones."""
    if name not in formats:
        raise user_error(
            f"format {name!r}", "is not in the table", nearest(name, formats) or f"Known: {', '.join(formats)}"
        )
    return formats[name]
