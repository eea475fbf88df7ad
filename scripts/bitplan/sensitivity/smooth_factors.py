"""SmoothQuant's factors, measured: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (Xiao et al. 2022, equation 4)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bitplan.models.layers import Layer
from bitplan.models.walk import Block, StreamedModel
from bitplan.plans.apply import smooth_, weight_of
from bitplan.plans.smoothing import SmoothGroup, Smoothing
from bitplan.statistics.inputs import BlockInputs

log = logging.getLogger(__name__)
SMALLEST = 1e-5
# How far folding may move a block's output, relative to its largest value: rounding in the compute dtype.
TOLERANCE = {torch.float32: 1e-3}


def factors(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Return s (in,) float32 of the largest |X_j| (in,) and |W_j| (in,) of each column; 1 where one of them is zero."""
    made = inputs.to(torch.float32).pow(alpha) / weights.to(torch.float32).pow(1 - alpha)
    usable = (inputs > 0) & (weights > 0)
    return torch.where(usable, made, torch.ones(())).clamp(min=SMALLEST)


def norm_offset(norm: nn.Module) -> float:
    """Return what a norm adds to its weight: Gemma's computes x (1 + w), others x w. Asked of the norm itself."""
    kept, bias = norm.weight, getattr(norm, "bias", None)
    norm.weight = nn.Parameter(torch.zeros_like(kept), requires_grad=False)
    if bias is not None:
        norm.bias = None
    try:
        answer = norm(torch.linspace(-1, 1, len(kept), dtype=kept.dtype, device=kept.device).unsqueeze(0))
    finally:
        norm.weight = kept
        if bias is not None:
            norm.bias = bias
    return 1.0 if answer.abs().max().item() > 1e-3 else 0.0


def _largest_weights(layers: Sequence[str], block: Block, info_layers: Mapping[str, Layer]) -> Tensor:
    """Return the largest |W_j| (in,) over the quantizable layers of a group."""
    held = [name for name in layers if not info_layers[name].protected]
    columns = [weight_of(block.layers[name], info_layers[name]).detach().abs().amax(0) for name in held]
    return torch.stack(columns).amax(0).to("cpu", torch.float32)


def _readers(seen: BlockInputs, block: Block) -> dict[str, list[str]]:
    """Return {norm: layers that read its output}."""
    readers: dict[str, list[str]] = {}
    for layer in block.layers:
        if layer in seen.norm_of:
            readers.setdefault(seen.norm_of[layer], []).append(layer)
    return readers


def checked_groups(
    model: StreamedModel,
    block: Block,
    groups: Sequence[SmoothGroup],
    layers: Mapping[str, Layer],
    again: Callable[[], Tensor],
    wanted: Tensor,
) -> list[SmoothGroup]:
    """Return the groups with those folded into norms that may be: `again()` runs the block anew and has to give `wanted`.

    Where a norm's output also goes elsewhere (post-norm blocks), its readers' inputs are divided instead.
    """
    folded = [group for group in groups if group.norm]
    if not folded or _unchanged(block, folded, layers, again, wanted):
        return list(groups)
    kept = [group for group in groups if not group.norm]
    for group in folded:
        model.load_(block.name, block.module)
        same = _unchanged(block, [group], layers, again, wanted)
        kept.append(group if same else _at_inputs(group, layers))
    return kept


def _unchanged(
    block: Block,
    groups: Sequence[SmoothGroup],
    layers: Mapping[str, Layer],
    again: Callable[[], Tensor],
    wanted: Tensor,
) -> bool:
    smooth_(block, Smoothing(tuple(groups)), layers)
    largest = wanted.abs().max().item()
    return (again() - wanted).abs().max().item() <= TOLERANCE.get(wanted.dtype, 0.05) * largest


def _at_inputs(group: SmoothGroup, layers: Mapping[str, Layer]) -> SmoothGroup:
    log.info("%s also feeds other modules: the inputs of its layers are divided instead", group.norm)
    held = tuple(name for name in group.layers if not layers[name].protected)
    return replace(group, layers=held, norm="", offset=0.0)


def groups_of(
    block: Block, seen: BlockInputs, info_layers: Mapping[str, Layer], alpha: float, at_inputs: bool
) -> list[SmoothGroup]:
    """Return the block's groups: one for each norm with quantizable readers, and with `at_inputs` one for each other input."""
    made, taken = [], set()
    for norm, layers in _readers(seen, block).items():
        if all(info_layers[name].protected for name in layers):
            continue
        scale = factors(seen.absmax[norm], _largest_weights(layers, block, info_layers), alpha)
        made.append(SmoothGroup(tuple(layers), scale, norm, norm_offset(block.norms[norm]), alpha))
        taken.update(layers)
    for name in block.layers:
        free = name not in taken and not info_layers[name].protected and name in seen.absmax
        if free and at_inputs:
            scale = factors(seen.absmax[name], _largest_weights([name], block, info_layers), alpha)
            made.append(SmoothGroup((name,), scale, alpha=alpha))
    return made
