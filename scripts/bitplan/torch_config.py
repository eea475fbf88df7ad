"""The configuration of the W4 + A4/A8 search as torch writes it: {layer: {w_bits, a_bits, clip_ratio, smooth_alpha}}."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitplan.errors import user_error
from bitplan.files import written_aside
from bitplan.formats.table import FORMATS
from bitplan.models.layers import ModelInfo
from bitplan.models.smoothing import read_smoothing, smoothing_path, write_smoothing
from bitplan.plan import LayerPlan, Plan, read_plan

CLIP_RATIO = 1.0
KEYS = ("w_bits", "a_bits", "clip_ratio", "smooth_alpha")
SCOPES = ("tensor", "token")
W_BITS, A_BITS = (4, 16), (4, 8, 16)


def content_of(plan: Plan, info: ModelInfo) -> dict[str, dict[str, Any]]:
    """Return the configuration of a plan's quantizable layers; `smooth_alpha` is None for a layer that is not smoothed."""
    smoothed = plan.smoothing.by_layer if plan.smoothing else {}
    return {
        layer.name: {
            "w_bits": int(FORMATS[plan.of(layer.name).wq].element_bits),
            "a_bits": int(FORMATS[plan.of(layer.name).aq].element_bits),
            "clip_ratio": CLIP_RATIO,
            "smooth_alpha": smoothed[layer.name].alpha if layer.name in smoothed else None,
        }
        for layer in info.quantizable
    }


def write_pt(path: Path, plan: Plan, info: ModelInfo) -> None:
    """Write the configuration, loadable with `weights_only=True`, and the smoothing factors beside it."""
    if plan.smoothing is not None:
        write_smoothing(smoothing_path(path), plan.smoothing)
    with written_aside(path) as aside:
        torch.save(content_of(plan, info), aside)


def _loaded(path: Path) -> Mapping[str, Mapping[str, Any]]:
    import pickle

    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        raise user_error(
            path, f"is no configuration of torch: {first}", "Make it with scripts/mixed_precision_ptq.py"
        ) from None
    wrong = not isinstance(content, dict) or not all(
        isinstance(entry, dict) and entry.get("w_bits") in W_BITS and entry.get("a_bits") in A_BITS
        for entry in content.values()
    )
    if wrong:
        hint = "Make it with scripts/mixed_precision_ptq.py"
        raise user_error(path, "is no {layer: {w_bits: 4 or 16, a_bits: 4, 8 or 16}}", hint)
    return content


def read_pt(path: Path, info: ModelInfo, scope: str = SCOPES[0]) -> Plan:
    """Return the plan in a configuration: int4 weights in groups of 128, activations with a scale per `scope`.

    The factors beside it are applied where it names an alpha. Raises `UserError` for layers that the model does not have.
    """
    content = _loaded(path)
    unknown = sorted(set(content) - {layer.name for layer in info.quantizable})
    if unknown:
        raise user_error(path, f"names {unknown[0]}, which the model does not have", "It is for another model")
    layers = {layer.name: LayerPlan(notes={"category": layer.category}) for layer in info.layers}
    for name, entry in content.items():
        weights = "int4" if entry["w_bits"] == 4 else "bf16"
        inputs = "bf16" if entry["a_bits"] == 16 else f"int{entry['a_bits']}_{scope}"
        layers[name] = LayerPlan(weights, inputs, 128, layers[name].notes)
    smooth = any(entry.get("smooth_alpha") is not None for entry in content.values())
    smoothing = read_smoothing(smoothing_path(path)) if smooth else None
    return Plan(layers, {"method": "genetic"}, smoothing)


def read_any_plan(path: Path, info: ModelInfo) -> Plan:
    """Return the plan in a config.json, a plan.json or a .pt. Raises `UserError`."""
    return read_pt(path, info) if path.suffix == ".pt" else read_plan(path, info)
