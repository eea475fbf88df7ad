"""The table of number formats. A new format is one entry here plus its quantize and dequantize functions."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from bitplan.core.errors import nearest, user_error
from bitplan.formats import floating, ggml, integer, mx
from bitplan.formats.base import Format, Quantized

# Codes with a width for each input channel, written by SparseGPT: plans/compressed.py.
CHANNELS = "per_channel"


def _float(name: str, dtype: torch.dtype) -> Format:
    return Format(name, "float", 16, 0, 1, floating.caster(dtype), floating.WIDEN, True, fixed_block=True)


def _mx(name: str, element: mx.Element, bits: int, rule: mx.ScaleRule) -> Format:
    quantize, pack = mx.quantizer(element, rule), mx.packer(element)
    return Format(name, "mx", bits, 8, 32, quantize, mx.DEQUANTIZE, True, pack=pack)


def _int(bits: int) -> Format:
    quantize = integer.symmetric(bits)
    return Format(f"int{bits}", "int", bits, 16, 128, quantize, integer.DEQUANTIZE, False)


def _asymmetric(bits: int) -> Format:
    quantize, dequantize = integer.asymmetric(bits), integer.DEQUANTIZE_ASYMMETRIC
    return Format(f"int{bits}_asym", "int", bits, 16 + bits, 128, quantize, dequantize, True)


def _dynamic(bits: int, scope: str) -> Format:
    """Asymmetric integers with a scale computed at run time for each token, or each window, of activations."""
    over = {"row": integer.whole_rows, "tensor": integer.whole_tensor}[scope]
    back = {"row": integer.DEQUANTIZE_ASYMMETRIC, "tensor": integer.DEQUANTIZE_AT_ONCE}[scope]
    name = f"int{bits}_{'token' if scope == 'row' else scope}"
    quantize, scale_bits = over(integer.asymmetric(bits)), 16 + bits
    return Format(name, "int", bits, scale_bits, 1, quantize, back, True, True, scope=scope)


def _ggml(name: str) -> Format:
    kind = ggml.TYPES[name]
    values, size = ggml.block_of(ggml.GGMLQuantizationType[kind])
    quantize, dequantize = ggml.encoder(kind), ggml.decoder(kind)
    return Format(name, "gguf", 8 * size / values, 0, values, quantize, dequantize, False, fixed_block=True)


# GGUF's MXFP4 has the same codes and scales as mxfp4; only exact ties round differently (mxfp4: to even, GGUF: towards 0).
_MX = (
    ("mxfp4", mx.E2M1, 4),
    ("mxfp6_e2m3", mx.E2M3, 6),
    ("mxfp6_e3m2", mx.E3M2, 6),
    ("mxfp8", mx.E4M3, 8),
    ("mxfp8_e5m2", mx.E5M2, 8),
)
_SUFFIXES = {"floor": "", "rceil": "_rceil", "mse": "_mse"}
_BITS = range(2, 9)

_ENTRIES = (
    _float("bf16", torch.bfloat16),
    _float("fp16", torch.float16),
    *(_mx(name + _SUFFIXES[key], *rest, rule) for name, *rest in _MX for key, rule in mx.RULES.items()),
    *map(_int, _BITS),
    *map(_asymmetric, _BITS),
    *(_dynamic(bits, scope) for scope in ("row", "tensor") for bits in (4, 8)),
    *map(_ggml, ggml.TYPES),
)
FORMATS: Mapping[str, Format] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def _made_elsewhere(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
    what = "cannot be computed from the weights: its codes are stored beside the plan"
    raise user_error(
        "FORMAT-CHANNELS-ONLY", f"format {CHANNELS}", what, "Create such a plan with scripts/sparsegpt_enhanced.py"
    )


# The formats that a plan may name: the table, and codes that are stored with the plan.
IN_PLANS: Mapping[str, Format] = MappingProxyType(
    {
        **FORMATS,
        CHANNELS: Format(CHANNELS, "stored", 8, 0, 1, _made_elsewhere, integer.DEQUANTIZE, False, fixed_block=True),
    }
)


def format_named(name: str, formats: Mapping[str, Format] = FORMATS) -> Format:
    """Return the format called `name`. Raises `UserError` that names the nearest ones."""
    if name not in formats:
        raise user_error(
            "FORMAT-UNKNOWN",
            f"format {name!r}",
            "does not exist",
            nearest(name, formats) or f"Known: {', '.join(formats)}",
        )
    return formats[name]
