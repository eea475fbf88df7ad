"""The table of number formats. A new format is its module, with quantize and dequantize, and its entry here.

Names are known without loading torch, for checking settings; a format is built when it is first looked up.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from bitplan.core.errors import nearest, user_error
from bitplan.formats.facts import GGUF_TYPES, TYPE_NAMES
from bitplan.formats.sizes import SIZES, Sized

if TYPE_CHECKING:
    from torch import Tensor

    from bitplan.formats.base import Dequantize, Format, Quantize, Quantized

Builder = Callable[[], "Format"]
# Codes with a width for each input channel, written by SparseGPT: plans/compressed.py.
PER_CHANNEL = "per_channel"


def _sized(name: str, family: str, quantize: "Quantize", dequantize: "Dequantize", **more: Any) -> "Format":
    """Return the format of a name in the size that `SIZES` has for it; not for activations by default."""
    from bitplan.formats.base import Format

    size = SIZES[name]
    facts = {
        "scope": size.scope,
        "fixed_block": size.fixed_block,
        "matrix_bits": size.matrix_bits,
        "for_activations": False,
    } | more
    return Format(
        name, family, size.element_bits, size.scale_bits, size.block, quantize=quantize, dequantize=dequantize, **facts
    )


def _float(name: str, dtype: str) -> "Format":
    import torch

    from bitplan.formats import floating

    quantize = floating.caster(getattr(torch, dtype))
    return _sized(name, "float", quantize, floating.WIDEN, for_activations=True)


def _mx(name: str, element: str, rule: str) -> "Format":
    from bitplan.formats import mx

    kind = getattr(mx, element)
    quantize, pack = mx.quantizer(kind, mx.RULES[rule]), mx.packer(kind)
    return _sized(name, "mx", quantize, mx.DEQUANTIZE, for_activations=True, pack=pack)


def _int(name: str, bits: int, scales: str = "float16") -> "Format":
    import torch

    from bitplan.formats import integer

    return _sized(name, "int", integer.symmetric(bits, getattr(torch, scales)), integer.DEQUANTIZE)


def _asymmetric(name: str, bits: int, scales: str = "float16") -> "Format":
    import torch

    from bitplan.formats import integer

    quantize, dequantize = integer.asymmetric(bits, getattr(torch, scales)), integer.DEQUANTIZE_ASYMMETRIC
    return _sized(name, "int", quantize, dequantize, for_activations=scales == "float16")


def _dynamic(name: str, bits: int, scope: str) -> "Format":
    """Asymmetric integers with a scale computed at run time for each token, or each window, of activations."""
    from bitplan.formats import integer

    over = {"row": integer.whole_rows, "tensor": integer.whole_tensor}[scope]
    back = {"row": integer.DEQUANTIZE_ASYMMETRIC, "tensor": integer.DEQUANTIZE_AT_ONCE}[scope]
    return _sized(name, "int", over(integer.asymmetric(bits)), back, for_activations=True)


def _ggml(name: str) -> "Format":
    from bitplan.formats import ggml

    kind = TYPE_NAMES[name]
    return _sized(name, "gguf", ggml.encoder(kind), ggml.decoder(kind))


def _nvfp4(name: str, rule: str) -> "Format":
    from dataclasses import replace

    from bitplan.formats import nvfp4

    chosen = nvfp4.RULES[rule]

    def fit(form: "Format", values: "Tensor") -> "Format":
        return replace(form, quantize=nvfp4.quantizer(chosen, nvfp4.matrix_scale(values, chosen)))

    quantize = nvfp4.quantizer(chosen)
    return _sized(name, "nvfp4", quantize, nvfp4.DEQUANTIZE, pack=nvfp4.pack, fit=fit)


def _refuse_quantizing(values: "Tensor", group: int, importance: "Tensor | None" = None) -> "Quantized":
    what = "cannot be computed from the weights: its codes are stored beside the plan"
    raise user_error(
        "FORMAT-CHANNELS-ONLY", f"format {PER_CHANNEL}", what, "Create such a plan with scripts/sparsegpt_enhanced.py"
    )


def _channels() -> "Format":
    from bitplan.formats import integer
    from bitplan.formats.base import Format

    dequantize = integer.DEQUANTIZE
    return Format(PER_CHANNEL, "stored", 8, 0, 1, _refuse_quantizing, dequantize, False, fixed_block=True)


# GGUF's MXFP4 has the same codes and scales as mxfp4; only exact ties round differently (mxfp4: to even, GGUF: towards 0).
_MX = (
    ("mxfp4", "E2M1"),
    ("mxfp6_e2m3", "E2M3"),
    ("mxfp6_e3m2", "E3M2"),
    ("mxfp8", "E4M3"),
    ("mxfp8_e5m2", "E5M2"),
)
_SUFFIXES = {"": "floor", "_rceil": "rceil", "_mse": "mse"}
NVFP4 = {"nvfp4": "published", "nvfp4_pow2": "power_of_two"}
_BITS = range(2, 9)
# The type of scales that the end of an integer format's name stands for.
_SCALES = {"": "float16", "_bf16s": "bfloat16"}
_SCOPES = {"token": "row", "tensor": "tensor"}

BUILDERS: Mapping[str, Builder] = {
    "bf16": partial(_float, "bf16", "bfloat16"),
    "fp16": partial(_float, "fp16", "float16"),
    **{
        name + suffix: partial(_mx, name + suffix, element, rule)
        for name, element in _MX
        for suffix, rule in _SUFFIXES.items()
    },
    **{name: partial(_nvfp4, name, rule) for name, rule in NVFP4.items()},
    **{
        f"int{bits}{kind}{suffix}": partial(build, f"int{bits}{kind}{suffix}", bits, scales)
        for suffix, scales in _SCALES.items()
        for kind, build in (("", _int), ("_asym", _asymmetric))
        for bits in _BITS
    },
    **{
        f"int{bits}_{scope}": partial(_dynamic, f"int{bits}_{scope}", bits, shared)
        for scope, shared in _SCOPES.items()
        for bits in (4, 8)
    },
    **{name: partial(_ggml, name) for name in GGUF_TYPES},
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
IN_PLANS: Mapping[str, "Format"] = Formats({**BUILDERS, PER_CHANNEL: _channels})


def size_of(name: str) -> Sized:
    """Return the size of a format that a plan may name; one that `SIZES` lacks is built, which loads torch."""
    return SIZES[name] if name in SIZES else IN_PLANS[name]


def get_format(name: str, formats: Mapping[str, "Format"] = FORMATS) -> "Format":
    """Return the format called `name`. Raises `UserError` that names the nearest ones."""
    if name not in formats:
        raise user_error(
            "FORMAT-UNKNOWN",
            f"format {name!r}",
            "does not exist",
            nearest(name, formats) or f"Known: {', '.join(formats)}",
        )
    return formats[name]
