"""Names of llama.cpp's own recipes: the baselines that plans are compared with, and whose size a plan may have. Needs no heavy package."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic.types import PydanticCustomError

from bitplan.core.errors import nearest

# Ends the name of a baseline whose recipe is given the importance matrix.
IMATRIX_SUFFIX = "_imatrix"

# llama.cpp's recipes by name; a test holds them known to the runtime.
QUANTIZED_RECIPES = (
    "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs",
    "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip
WITH_IMPORTANCE = tuple(f"{recipe}{IMATRIX_SUFFIX}" for recipe in QUANTIZED_RECIPES)
BASELINES = ("f16", "bf16", *QUANTIZED_RECIPES, *WITH_IMPORTANCE)


def spelt(name: Any) -> Any:
    """Return a recipe's name as it is written here, from Q4_K_M or q4-k-m; what is no text, as it is."""
    return name.strip().lower().replace("-", "_") if isinstance(name, str) else name


def unknown(name: Any, known: tuple[str, ...] = BASELINES) -> str:
    """Return what is wrong with a name that is none of the `known` ones, and which of them are near; "" for one of them."""
    if spelt(name) in known:
        return ""
    return f"{name!r} is no recipe of llama.cpp. {nearest(str(spelt(name)), known, 1) or 'Known: ' + ', '.join(QUANTIZED_RECIPES)}"


def _known(name: Any) -> Any:
    if what := unknown(name):
        raise PydanticCustomError("no_recipe", "{what}", {"what": what})
    return spelt(name)


Recipe = Annotated[Literal[BASELINES], BeforeValidator(_known)]
