"""The configuration of the W4 + A4/A8 search in torch's file format: {layer: {w_bits, a_bits, clip_ratio, smooth_alpha}}."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitplan.core.errors import user_error
from bitplan.core.files import write_aside
from bitplan.formats.table import IN_PLANS
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import LayerPlan, Plan, read_plan
from bitplan.plans.smoothing import Smoothing, read_smoothing, smoothing_path, write_smoothing

log = logging.getLogger(__name__)
CLIP_RATIO = 1.0
GROUP_SIZE = 128
KEYS = ("w_bits", "a_bits", "clip_ratio", "smooth_alpha")
SCOPES = ("tensor", "token")
W_BITS, A_BITS = (4, 16), (4, 8, 16)


def torch_content(plan: Plan, info: ModelInfo) -> dict[str, dict[str, Any]]:
    """Return the configuration of a plan's quantizable layers; `smooth_alpha` is None for a layer that is not smoothed."""
    smoothed = plan.smoothing.by_layer if plan.smoothing else {}
    return {
        layer.name: {
            "w_bits": int(IN_PLANS[plan.of(layer.name).wq].element_bits),
            "a_bits": int(IN_PLANS[plan.of(layer.name).aq].element_bits),
            "clip_ratio": CLIP_RATIO,
            "smooth_alpha": smoothed[layer.name].alpha if layer.name in smoothed else None,
        }
        for layer in info.quantizable
    }


def write_pt(path: Path, plan: Plan, info: ModelInfo) -> None:
    """Write the configuration, which `weights_only=True` can load, and the smoothing factors next to it.

    It cannot represent group sizes other than 128 or scales per token: a warning says so.
    """
    choices = [plan.of(layer.name) for layer in info.quantizable]
    if any(each.group_size not in (None, GROUP_SIZE) or each.aq.endswith(f"_{SCOPES[1]}") for each in choices):
        log.warning("%s holds neither group size nor activation scope: use the config.json or plan.json", path)
    if plan.smoothing is not None:
        write_smoothing(smoothing_path(path), plan.smoothing)
    # Given a path, torch would write the temporary file's name into the archive.
    with write_aside(path) as aside, open(aside, "wb") as handle:
        torch.save(torch_content(plan, info), handle)


def _load_pt(path: Path) -> Mapping[str, Mapping[str, Any]]:
    hint = "Make it with scripts/mixed_precision_ptq.py"
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        # Any exception is possible for a foreign or broken file, and torch's own message suggests running the file's code.
        what = f"is nothing that torch reads without running code ({type(error).__name__})"
        raise user_error(path, what, hint) from None
    if not isinstance(content, dict) or not content or not all(map(_is_entry, content, content.values())):
        raise user_error(path, "is no {layer: {w_bits: 4 or 16, a_bits: 4, 8 or 16, clip_ratio: 1}}", hint)
    return content


def _is_entry(name: Any, entry: Any) -> bool:
    """Return whether a name and an entry have the form that `torch_content` writes; weights are never clipped (ratio 1)."""
    if not (isinstance(name, str) and isinstance(entry, dict)):
        return False
    alpha, clip = entry.get("smooth_alpha"), entry.get("clip_ratio", CLIP_RATIO)
    numbers = (entry.get("w_bits"), entry.get("a_bits"), clip, 0 if alpha is None else alpha)
    plain = all(type(value) in (int, float) for value in numbers)
    return plain and entry["w_bits"] in W_BITS and entry["a_bits"] in A_BITS and clip == CLIP_RATIO


def read_pt(path: Path, info: ModelInfo, scope: str = SCOPES[0]) -> Plan:
    """Return the plan in a configuration: int4 weights in groups of 128, activations with a scale per `scope`.

    The stored factors are applied to layers with an alpha. Raises `UserError` for layers that the model does not have.
    """
    content = _load_pt(path)
    unknown = sorted(set(content) - {layer.name for layer in info.quantizable})
    if unknown:
        raise user_error(path, f"names {unknown[0]}, which the model does not have", "It is for another model")
    layers = {layer.name: LayerPlan(notes={"category": layer.category}) for layer in info.layers}
    for name, entry in content.items():
        weights = "int4" if entry["w_bits"] == 4 else "bf16"
        inputs = "bf16" if entry["a_bits"] == 16 else f"int{int(entry['a_bits'])}_{scope}"
        layers[name] = LayerPlan(weights, inputs, GROUP_SIZE, layers[name].notes)
    return Plan(layers, {"method": "genetic"}, _smoothing_of(path, content, info))


def _smoothing_of(path: Path, content: Mapping[str, Mapping[str, Any]], info: ModelInfo) -> Smoothing | None:
    """Return the factors stored with a configuration. Raises `UserError` unless they match its alphas and the model's columns."""
    alphas = {name: entry["smooth_alpha"] for name, entry in content.items() if entry.get("smooth_alpha") is not None}
    if not alphas:
        return None
    smoothing = read_smoothing(smoothing_path(path))
    columns = {layer.name: layer.shape[1] for layer in info.layers}
    quantizable = {layer.name for layer in info.quantizable}
    stored_alphas = {name: group.alpha for name, group in smoothing.by_layer.items() if name in quantizable}
    fits = all(columns.get(name) == len(group.scale) for name, group in smoothing.by_layer.items())
    if stored_alphas != alphas or not fits:
        hint = "Search again, or copy the file that was written with the configuration"
        raise user_error(smoothing_path(path), f"belongs to another configuration than {path.name}", hint)
    return smoothing


def read_any_plan(path: Path, info: ModelInfo, scope: str = SCOPES[0]) -> Plan:
    """Return the plan in a config.json, a plan.json or a .pt, whose activations have a scale per `scope`. Raises `UserError`."""
    return read_pt(path, info, scope) if path.suffix == ".pt" else read_plan(path, info)
