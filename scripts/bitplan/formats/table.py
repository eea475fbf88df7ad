"""The table of number formats. A new format is one entry here plus its quantize and dequantize functions."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from bitplan.core.errors import nearest, user_error
from bitplan.formats import floating, ggml, integer, mx
from bitplan.formats.base import Format, Quantized

# Codes with a width for each input channel, written by SparseGPT: plans/compressed.py.
PER_CHANNEL = "per_channel"


def _float(name: str, dtype: torch.dtype, gguf_type: str) -> Format:
    return Format(
        name, "float", 16, 0, 1, floating.caster(dtype), floating.WIDEN, gguf_type, True, True, fixed_block=True
    )


def _mx(name: str, element: mx.Element, bits: int, gguf_type: str, rule: mx.ScaleRule) -> Format:
    quantize, pack = mx.quantizer(element, rule), mx.packer(element)
    return Format(name, "mx", bits, 8, 32, quantize, mx.DEQUANTIZE, gguf_type, False, True, pack=pack)


def _int(bits: int, gguf_type: str) -> Format:
    quantize = integer.symmetric(bits)
    return Format(f"int{bits}", "int", bits, 16, 128, quantize, integer.DEQUANTIZE, gguf_type, False, False)


def _asymmetric(bits: int, gguf_type: str) -> Format:
    quantize, dequantize = integer.asymmetric(bits), integer.DEQUANTIZE_ASYMMETRIC
    return Format(f"int{bits}_asym", "int", bits, 16 + bits, 128, quantize, dequantize, gguf_type, False, True)


def _dynamic(bits: int, scope: str, gguf_type: str) -> Format:
    """Asymmetric integers with a scale computed at run time for each token, or each window, of activations."""
    over = {"row": integer.whole_rows, "tensor": integer.whole_tensor}[scope]
    back = {"row": integer.DEQUANTIZE_ASYMMETRIC, "tensor": integer.DEQUANTIZE_AT_ONCE}[scope]
    name = f"int{bits}_{'token' if scope == 'row' else scope}"
    quantize, scale_bits = over(integer.asymmetric(bits)), 16 + bits
    return Format(name, "int", bits, scale_bits, 1, quantize, back, gguf_type, False, True, True, scope=scope)


def _ggml(name: str, kind: str) -> Format:
    values, size = ggml.block_of(ggml.GGMLQuantizationType[kind])
    quantize, dequantize = ggml.encoder(kind), ggml.decoder(kind)
    return Format(name, "gguf", 8 * size / values, 0, values, quantize, dequantize, kind, True, False, fixed_block=True)


# GGUF's MXFP4 has the same codes and scales as mxfp4; only exact ties round differently (mxfp4: to even, GGUF: towards 0).
_MX = (
    ("mxfp4", mx.E2M1, 4, "MXFP4"),
    ("mxfp6_e2m3", mx.E2M3, 6, "Q6_K"),
    ("mxfp6_e3m2", mx.E3M2, 6, "Q6_K"),
    ("mxfp8", mx.E4M3, 8, "Q8_0"),
    ("mxfp8_e5m2", mx.E5M2, 8, "Q8_0"),
)
_SUFFIXES = {"floor": "", "rceil": "_rceil", "mse": "_mse"}
_BITS = range(2, 9)
_GGML = (
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    *("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "iq4_xs"),
)

_ENTRIES = (
    _float("bf16", torch.bfloat16, "BF16"),
    _float("fp16", torch.float16, "F16"),
    *(_mx(name + _SUFFIXES[key], *rest, rule) for name, *rest in _MX for key, rule in mx.RULES.items()),
    *map(_int, _BITS, ("Q2_K", "Q3_K", "Q4_0", "Q5_0", "Q6_K", "Q8_0", "Q8_0")),
    *map(_asymmetric, _BITS, ("Q2_K", "Q3_K", "Q4_1", "Q5_1", "Q6_K", "Q8_0", "Q8_0")),
    *(_dynamic(bits, scope, kind) for scope in ("row", "tensor") for bits, kind in ((4, "Q4_1"), (8, "Q8_0"))),
    *(_ggml(name, name.upper()) for name in _GGML),
    _ggml("gguf_mxfp4", "MXFP4"),
)
FORMATS: Mapping[str, Format] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def _refuse_quantizing(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
    what = "is no rounding: the codes stand beside the plan that names it"
    raise user_error(f"format {PER_CHANNEL}", what, "Make such a plan with scripts/sparsegpt_enhanced.py")


# The formats that a plan may name: the table, and codes that are stored with the plan.
IN_PLANS: Mapping[str, Format] = MappingProxyType(
    {
        **FORMATS,
        PER_CHANNEL: Format(
            PER_CHANNEL,
            "stored",
            8,
            0,
            1,
            _refuse_quantizing,
            integer.DEQUANTIZE,
            "Q8_0",
            False,
            False,
            fixed_block=True,
        ),
    }
)


def get_format(name: str, formats: Mapping[str, Format] = FORMATS) -> Format:
    """Return the format called `name`. Raises `UserError` that names the nearest ones."""
    if name not in formats:
        raise user_error(
            f"format {name!r}", "is not in the table", nearest(name, formats) or f"Known: {', '.join(formats)}"
        )
    return formats[name]
