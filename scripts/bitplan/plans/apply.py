"""Applies a plan during a walk: weights are quantized when a block is loaded, activations at each layer's input."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitplan.formats.base import Format, Quantized
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.table import IN_PLANS, PER_CHANNEL
from bitplan.models.experts import has_experts
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import Block, Forward, Visit, window_by_window
from bitplan.plans.plan import LayerPlan, Plan, check_columns, check_plan_importance
from bitplan.plans.smoothing import Smoothing, fold_norms_

GIB = 1 << 30


@dataclass
class QuantizedWeights:
    """A cache of quantized matrices by (layer, format, group size), shared by the evaluations of many plans.

    It takes at most `limit` bytes and never evicts: every evaluation visits the layers in the same order, so evicting the
    least recently used matrix would drop each one just before its next use. `quantizations` counts how often `quantize` ran.
    """

    limit: int = 4 * GIB
    formats: Mapping[str, Format] = field(default_factory=lambda: IN_PLANS)
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    quantizations: int = 0
    _kept: dict[tuple[str, str, int, str], Quantized] = field(default_factory=dict)
    _used: int = 0

    def get(self, layer: str, weight: Tensor, choice: LayerPlan, smoothing: Smoothing | None = None) -> Tensor:
        """Return `weight` (out, in), to which `smoothing` is already applied, quantized and dequantized, float32."""
        form = self.formats[choice.wq]
        group = form.group(choice.group_size)
        key = (layer, choice.wq, group, smoothing.digest if smoothing else "")
        quantized = self._kept.get(key)
        if quantized is None:
            quantized = self.quantize(layer, weight, choice, smoothing)
            if self._used < self.limit:  # packing is another copy of the matrix
                self._keep_(key, form.pack(quantized))
        return form.dequantize(quantized, group)

    def _keep_(self, key: tuple[str, str, int, str], packed: Quantized) -> None:
        """Keep a packed matrix if there is room for it."""
        if self._used + packed.nbytes <= self.limit:
            self._kept[key] = packed
            self._used += packed.nbytes

    def quantize(self, layer: str, weight: Tensor, choice: LayerPlan, smoothing: Smoothing | None = None) -> Quantized:
        """Return the parts of `weight` (out, in), already smoothed by `smoothing` if any, in its format."""
        self.quantizations += 1
        form = self.formats[choice.wq]
        importance = self._importance(layer, smoothing)
        return form.quantize(weight.to(torch.float32), form.group(choice.group_size), importance)

    def _importance(self, layer: str, smoothing: Smoothing | None) -> Tensor | None:
        """Return mean x^2 (in,) of the layer's input, or of x / s if it is smoothed by s."""
        importance, factor = self.importance.get(layer), smoothing.factor(layer) if smoothing else None
        return (
            importance if importance is None or factor is None else importance / factor.to(importance.device).square()
        )


def weight_of(module: nn.Module, layer: Layer) -> Tensor:
    """Return the module's weight as (out, in): Conv1D stores the transpose."""
    return module.weight.T if layer.transposed else module.weight


def set_weight_(module: nn.Module, layer: Layer, weight: Tensor) -> None:
    """Replace the module's weight by `weight` (out, in), in its dtype and on its device."""
    stored = weight.T if layer.transposed else weight
    old = module.weight
    module.weight = nn.Parameter(stored.to(dtype=old.dtype, device=old.device).contiguous(), requires_grad=False)


class _QuantizedInputs:
    """Pre-hooks that quantize activations; layers that share an input (q, k and v) share its quantized form."""

    def __init__(self, formats: Mapping[str, Format]) -> None:
        self.formats = formats
        self._last: tuple[Tensor, tuple, Tensor] | None = None

    def hook(self, choice: LayerPlan, divisor: Tensor | None):
        def quantize(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self._quantized(args[0], choice, divisor), *args[1:])

        return quantize

    def _quantized(self, values: Tensor, choice: LayerPlan, divisor: Tensor | None) -> Tensor:
        key = (choice.aq, choice.group_size, id(divisor))
        if self._last and self._last[0] is values and self._last[1] == key:
            return self._last[2]
        smoothed = values if divisor is None else values / divisor.to(values.device, values.dtype)
        result = (
            smoothed if choice.aq == UNQUANTIZED else self.formats[choice.aq].roundtrip(smoothed, choice.group_size)
        )
        if smoothed.requires_grad and choice.aq != UNQUANTIZED:
            result = smoothed + (result - smoothed).detach()  # straight-through gradient
        self._last = (values, key, result.to(values.dtype))
        return self._last[2]


@contextmanager
def quantize_inputs(block: Block, plan: Plan, formats: Mapping[str, Format]) -> Iterator[None]:
    """Smooth and quantize the input of each of the block's layers as the plan says, until the context ends."""
    inputs = _QuantizedInputs(formats)
    divisors = {name: plan.smoothing.input_divisor(name) if plan.smoothing else None for name in block.layers}
    hooks = [
        module.register_forward_pre_hook(inputs.hook(plan.of(name), divisors[name]))
        for name, module in block.layers.items()
        if plan.of(name).aq != UNQUANTIZED or divisors[name] is not None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def quantize_weights_(block: Block, plan: Plan, info_layers: Mapping[str, Layer], weights: QuantizedWeights) -> None:
    """Replace each weight of the block by its quantized value, after the plan's smoothing."""
    if plan.smoothing is not None:
        smooth_(block, plan.smoothing, info_layers)
    for name, module in block.layers.items():
        layer, choice = info_layers.get(name), plan.of(name)
        if layer is not None and choice.wq != UNQUANTIZED:
            set_weight_(module, layer, planned_weight(name, weight_of(module, layer), plan, weights))


def planned_weight(name: str, weight: Tensor, plan: Plan, weights: QuantizedWeights) -> Tensor:
    """Return a layer's planned weight (out, in), float32: `weight` (already smoothed) quantized, or the values stored with the plan."""
    if plan.of(name).wq == PER_CHANNEL:
        return plan.compressed.weight(name)
    if plan.rounded is not None and name in plan.rounded:
        return plan.rounded.weight(name)
    return weights.get(name, weight, plan.of(name), plan.smoothing)


def smooth_(block: Block, smoothing: Smoothing, info_layers: Mapping[str, Layer]) -> None:
    """Multiply the columns of the block's layers by their factors, and divide its norms."""
    fold_norms_(block, smoothing)
    for name, module in block.layers.items():
        factor = smoothing.factor(name)
        if factor is not None:
            layer = info_layers[name]
            set_weight_(module, layer, weight_of(module, layer).to(torch.float32) * factor.to(module.weight.device))


def scales_span_windows(plan: Plan, formats: Mapping[str, Format]) -> bool:
    """Return whether some activations have one scale per window: windows must then not be merged or padded."""
    return any(formats[choice.aq].scope == "tensor" for choice in plan.layers.values())


def apply_plan(plan: Plan, info: ModelInfo, weights: QuantizedWeights) -> Visit:
    """Return a visitor that runs every block under the plan. Raises `UserError` if a format does not fit its layer or lacks importance."""
    check_columns(plan, info, weights.formats)
    check_plan_importance(plan, info, weights.importance)
    layers = {layer.name: layer for layer in info.layers}

    spans_windows = scales_span_windows(plan, weights.formats)

    def visit(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        quantize_weights_(block, plan, layers, weights)
        # Experts receive the tokens of all windows in one list.
        apart = spans_windows and has_experts(block.module)
        with quantize_inputs(block, plan, weights.formats):
            return (window_by_window(forward) if apart else forward)(hidden)

    return visit
