"""llama.cpp's own recipes (Q4_K_M ...), through `llama_model_quantize`: the baselines that plans are compared with."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from bitplan.core.errors import user_error
from bitplan.core.files import check_gguf, write_aside
from bitplan.runtimes.gguf.llama_runtime import last_error, quiet_api

RECIPES = {
    name.removeprefix("MOSTLY_").lower(): name for name in LlamaFileType.__members__ if name.startswith("MOSTLY_")
}


def _overrides(api, tensors: Mapping[str, str]):
    """Return the runtime's array of (name pattern, type), ended by an empty entry."""
    array = (api.llama_model_tensor_override * (len(tensors) + 1))()
    for slot, (pattern, kind) in zip(array, tensors.items(), strict=False):
        slot.pattern, slot.type = pattern.encode(), int(GGMLQuantizationType[kind])
    return array


def _importance(api, columns: Mapping[str, np.ndarray]):
    """Return the runtime's array of (tensor's name, values, how many), ended by an empty entry. It points into `columns`."""
    array = (api.llama_model_imatrix_data * (len(columns) + 1))()
    for slot, (name, values) in zip(array, columns.items(), strict=False):
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array


def quantize_by_recipe(
    base: Path,
    output: Path,
    recipe: str,
    threads: int,
    tensors: Mapping[str, str] | None = None,
    importance: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Write `base` as llama.cpp itself quantizes it: by a recipe, or every tensor as named in `tensors` {pattern: type}.

    `importance` {tensor: mean x^2 per column (in,) float32, of experts one after another} is handed to llama.cpp, whose recipe may
    choose other types with it: q4_0, q5_0, iq4_nl and iq4_xs do for some of the first feed-forward matrices, the K recipes do not. Raises `UserError` when the recipe is unknown or the runtime refuses.
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
    held = {name: np.ascontiguousarray(values, np.float32) for name, values in importance.items()}
    columns = _importance(api, held)
    if held:
        params.imatrix = ctypes.cast(columns, type(params.imatrix))
    with write_aside(output) as aside:
        code = api.llama_model_quantize(str(base).encode(), str(aside).encode(), ctypes.byref(params))
        if code:
            said = last_error() or "it does not say why"
            hint = "Is there room for the output? If not that, make the file again with scripts/convert_gguf.py"
            raise user_error(base, f"is not quantized to {recipe}, as {output}, by llama.cpp: {said}", hint)
