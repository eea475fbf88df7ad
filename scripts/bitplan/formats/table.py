"""The table of number formats. A new format is its module, with quantize and dequantize, and its entry here.

Names are known without loading torch, for checking settings; a format is built when it is first looked up.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

from bitplan.core.errors import nearest, user_error
from bitplan.formats.facts import GGUF_TYPES

if TYPE_CHECKING:
    from torch import Tensor

    from bitplan.formats.base import Format, Quantized

Builder = Callable[[], "Format"]
# Codes with a width for every input channel, which another step has made: plans/compressed.py.
CHANNELS = "channels"


def _float(name: str, dtype: str, gguf_type: str) -> "Format":
    import torch

    from bitplan.formats import floating
    from bitplan.formats.base import Format

    quantize = floating.caster(getattr(torch, dtype))
    return Format(name, "float", 16, 0, 1, quantize, floating.WIDEN, gguf_type, True, True, fixed_block=True)


def _mx(name: str, element: str, bits: int, gguf_type: str, rule: str) -> "Format":
    from bitplan.formats import mx
    from bitplan.formats.base import Format

    kind = getattr(mx, element)
    quantize, pack = mx.quantizer(kind, mx.RULES[rule]), mx.packer(kind)
    return Format(name, "mx", bits, 8, 32, quantize, mx.DEQUANTIZE, gguf_type, False, True, pack=pack)


def _int(name: str, bits: int, gguf_type: str) -> "Format":
    from bitplan.formats import integer
    from bitplan.formats.base import Format

    quantize = integer.symmetric(bits)
    return Format(name, "int", bits, 16, 128, quantize, integer.DEQUANTIZE, gguf_type, False, False)


def _asymmetric(name: str, bits: int, gguf_type: str) -> "Format":
    from bitplan.formats import integer
    from bitplan.formats.base import Format

    quantize, dequantize = integer.asymmetric(bits), integer.DEQUANTIZE_ASYMMETRIC
    return Format(name, "int", bits, 16 + bits, 128, quantize, dequantize, gguf_type, False, True)


def _dynamic(name: str, bits: int, scope: str, gguf_type: str) -> "Format":
    """Asymmetric integers with a scale found for every token, or every window, of activations as it comes."""
    from bitplan.formats import integer
    from bitplan.formats.base import Format

    over = {"row": integer.whole_rows, "tensor": integer.whole_tensor}[scope]
    back = {"row": integer.DEQUANTIZE_ASYMMETRIC, "tensor": integer.DEQUANTIZE_AT_ONCE}[scope]
    quantize, scale_bits = over(integer.asymmetric(bits)), 16 + bits
    return Format(name, "int", bits, scale_bits, 1, quantize, back, gguf_type, False, True, True, scope=scope)


def _ggml(name: str, kind: str) -> "Format":
    from bitplan.formats import ggml
    from bitplan.formats.base import Format

    values, size = ggml.block_of(ggml.GGMLQuantizationType[kind])
    quantize, dequantize = ggml.encoder(kind), ggml.decoder(kind)
    return Format(name, "gguf", 8 * size / values, 0, values, quantize, dequantize, kind, True, False, fixed_block=True)


def _made_elsewhere(values: "Tensor", group: int, importance: "Tensor | None" = None) -> "Quantized":
    what = "is no rounding: the codes stand beside the plan that names it"
    raise user_error(f"format {CHANNELS}", what, "Make such a plan with scripts/sparsegpt_enhanced.py")


def _channels() -> "Format":
    from bitplan.formats import integer
    from bitplan.formats.base import Format

    dequantize = integer.DEQUANTIZE
    return Format(CHANNELS, "channels", 8, 0, 1, _made_elsewhere, dequantize, "Q8_0", False, False, fixed_block=True)


# mxfp4's GGUF twin has the same codes and scales; only exact ties round differently (to even here, towards 0 there).
_MX = (
    ("mxfp4", "E2M1", 4, "MXFP4"),
    ("mxfp6_e2m3", "E2M3", 6, "Q6_K"),
    ("mxfp6_e3m2", "E3M2", 6, "Q6_K"),
    ("mxfp8", "E4M3", 8, "Q8_0"),
    ("mxfp8_e5m2", "E5M2", 8, "Q8_0"),
)
_SUFFIXES = {"": "floor", "_rceil": "rceil", "_mse": "mse"}
_SYMMETRIC = dict(enumerate(("Q2_K", "Q3_K", "Q4_0", "Q5_0", "Q6_K", "Q8_0", "Q8_0"), start=2))
_ASYMMETRIC = dict(enumerate(("Q2_K", "Q3_K", "Q4_1", "Q5_1", "Q6_K", "Q8_0", "Q8_0"), start=2))
_SCOPES = {"token": "row", "tensor": "tensor"}

BUILDERS: Mapping[str, Builder] = {
    "bf16": partial(_float, "bf16", "bfloat16", "BF16"),
    "fp16": partial(_float, "fp16", "float16", "F16"),
    **{
        name + suffix: partial(_mx, name + suffix, element, bits, kind, rule)
        for name, element, bits, kind in _MX
        for suffix, rule in _SUFFIXES.items()
    },
    **{f"int{bits}": partial(_int, f"int{bits}", bits, kind) for bits, kind in _SYMMETRIC.items()},
    **{f"int{bits}_asym": partial(_asymmetric, f"int{bits}_asym", bits, kind) for bits, kind in _ASYMMETRIC.items()},
    **{
        f"int{bits}_{scope}": partial(_dynamic, f"int{bits}_{scope}", bits, shared, kind)
        for scope, shared in _SCOPES.items()
        for bits, kind in ((4, "Q4_1"), (8, "Q8_0"))
    },
    **{name: partial(_ggml, name, name.removeprefix("gguf_").upper()) for name in GGUF_TYPES},
}
NAMES = tuple(BUILDERS)


@cache
def _built(builder: Builder) -> "Format":
    return builder()


class Formats(Mapping[str, "Format"]):
    """Formats by name, in the order of their builders; each is built when it is first looked up."""

    def __init__(self, builders: Mapping[str, Builder]) -> None:
        self._builders = dict(builders)

    def __getitem__(self, name: str) -> "Format":
        return _built(self._builders[name])

    def __contains__(self, name: object) -> bool:
        return name in self._builders

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)


FORMATS: Mapping[str, "Format"] = Formats(BUILDERS)
# What a plan may name: the table, and the format of weights that are not rounded to it.
IN_PLANS: Mapping[str, "Format"] = Formats({**BUILDERS, CHANNELS: _channels})


def format_named(name: str, formats: Mapping[str, "Format"] = FORMATS) -> "Format":
    """Return the format called `name`. Raises `UserError` that names the nearest ones."""
    if name not in formats:
        raise user_error(
            f"format {name!r}", "is not in the table", nearest(name, formats) or f"Known: {', '.join(formats)}"
        )
    return formats[name]
