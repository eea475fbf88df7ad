"""llama.cpp's own recipes (Q4_K_M ...), through `llama_model_quantize`: the baselines that plans are compared with."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

from gguf import GGMLQuantizationType, LlamaFileType

from bitplan.errors import user_error
from bitplan.evaluate.llama_runtime import last_error, quiet_api
from bitplan.files import check_gguf, written_aside

RECIPES = {
    name.removeprefix("MOSTLY_").lower(): name for name in LlamaFileType.__members__ if name.startswith("MOSTLY_")
}


def _overrides(api, tensors: Mapping[str, str]):
    """Return the runtime's array of (name pattern, type), ended by an empty entry."""
    array = (api.llama_model_tensor_override * (len(tensors) + 1))()
    for slot, (pattern, kind) in zip(array, tensors.items(), strict=False):
        slot.pattern, slot.type = pattern.encode(), int(GGMLQuantizationType[kind])
    return array


def quantize_by_recipe(
    base: Path, output: Path, recipe: str, threads: int, tensors: Mapping[str, str] | None = None
) -> None:
    """Write `base` as llama.cpp itself quantizes it: by a recipe, or every tensor as named in `tensors` {pattern: type}.

    Raises `UserError` when the recipe is unknown or the runtime refuses.
    """
    if recipe not in RECIPES:
        raise user_error(f"recipe {recipe!r}", "is not known to llama.cpp", f"Known: {', '.join(sorted(RECIPES))}")
    check_gguf(base)
    api = quiet_api()
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(LlamaFileType[RECIPES[recipe]]), threads
    params.allow_requantize = True
    overrides = _overrides(api, tensors or {})
    if tensors:
        params.tt_overrides, params.pure = ctypes.cast(overrides, type(params.tt_overrides)), True
    with written_aside(output) as aside:
        code = api.llama_model_quantize(str(base).encode(), str(aside).encode(), ctypes.byref(params))
        if code:
            said = last_error() or "it does not say why"
            hint = "Is there room for the output? If not that, make the file again with scripts/convert_gguf.py"
            raise user_error(base, f"is not quantized to {recipe}, as {output}, by llama.cpp: {said}", hint)
