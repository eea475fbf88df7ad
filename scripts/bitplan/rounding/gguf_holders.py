"""Formats whose codes a GGUF type holds as they are, and which type; known without loading torch.

Symmetric integers are the integers of Q4_0, Q5_0 and Q8_0 under the same float16 scale; the scales of `_bf16s` are float16 numbers too.
Elements of MXFP4 are E2M1's. A value of E2M3 is a multiple of 1/8 up to 7.5, so 8 x element is an integer of Q8_0 under the scale
2^(e - 3). A scale of more values is repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

BLOCK = 32


@dataclass(frozen=True)
class Packing:
    """A GGUF type, and `factor`: the type's element is the format's times this."""

    kind: str
    factor: int = 1


_RULES = ("", "_rceil", "_mse")
# MXFP4's table in ggml has doubled elements under half the scale; the stored exponent is the same.
PACKINGS: Mapping[str, Packing] = MappingProxyType(
    {
        **{
            f"int{bits}{scales}": Packing(kind)
            for bits, kind in enumerate(("Q4_0",) * 3 + ("Q5_0",) + ("Q8_0",) * 3, 2)
            for scales in ("", "_bf16s")
        },
        **{f"mxfp4{rule}": Packing("MXFP4", 2) for rule in _RULES},
        **{f"mxfp6_e2m3{rule}": Packing("Q8_0", 8) for rule in _RULES},
    }
)


def packing_of(form: str, group: int, columns: int) -> Packing | None:
    """Return the type that holds a format's codes in groups of `group` values along rows of `columns`; None if there is none."""
    packing = PACKINGS.get(form)
    return packing if packing is not None and not why_not_packed(form, group, columns) else None


def why_not_packed(form: str, group: int, columns: int) -> str:
    """Return why the type of a format in `PACKINGS` does not hold its codes; "" if it does, or if the format is not among them."""
    if form not in PACKINGS:
        return ""
    if group % BLOCK:
        return f"groups of {group} values are no multiple of {PACKINGS[form].kind}'s block of {BLOCK}"
    if columns % BLOCK:
        return f"{columns} columns are no multiple of {PACKINGS[form].kind}'s block of {BLOCK}"
    return ""


def scales_vary(form: str) -> bool:
    """Return whether a format has scales that its type may lack, so that `scales_fit` must look at them."""
    return form in PACKINGS and form.startswith("mx") and PACKINGS[form].kind != "MXFP4"
