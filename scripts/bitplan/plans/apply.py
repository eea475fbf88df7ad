"""Applying a plan while a model is walked: weights quantized as a block is loaded, activations at each layer's input."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitplan.formats.base import Format, Quantized
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.table import CHANNELS, IN_PLANS
from bitplan.models.experts import has_experts
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import Block, Forward, Visit, window_by_window
from bitplan.plans.plan import LayerPlan, Plan, check_columns
from bitplan.plans.smoothing import Smoothing, fold_norms_

GIB = 1 << 30


@dataclass
class QuantizedWeights:
    """Quantized matrices by (layer, format, group size), so that each is made once however many plans are evaluated.

    At most `limit` bytes are kept. Every evaluation walks the layers in the same order, so what is kept first stays: dropping
    the least recently used would drop each matrix just before it is wanted again. `made` counts quantizations.
    """

    limit: int = 4 * GIB
    formats: Mapping[str, Format] = field(default_factory=lambda: IN_PLANS)
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    made: int = 0
    _kept: dict[tuple[str, str, int, str], Quantized] = field(default_factory=dict)
    _used: int = 0

    def get(self, layer: str, weight: Tensor, made: LayerPlan, smoothing: Smoothing | None = None) -> Tensor:
        """Return `weight` (out, in), already smoothed by `smoothing` if any, as its format holds it, float32."""
        form = self.formats[made.wq]
        group = form.group(made.group_size)
        key = (layer, made.wq, group, smoothing.digest if smoothing else "")
        quantized = self._kept.get(key)
        if quantized is None:
            quantized = self.quantize(layer, weight, made, smoothing)
            packed = form.pack(quantized)
            if self._used + packed.nbytes <= self.limit:
                self._kept[key] = packed
                self._used += packed.nbytes
        return form.dequantize(quantized, group)

    def quantize(self, layer: str, weight: Tensor, made: LayerPlan, smoothing: Smoothing | None = None) -> Quantized:
        """Return the parts of `weight` (out, in), already smoothed by `smoothing` if any, in its format."""
        self.made += 1
        form = self.formats[made.wq]
        importance = self._importance(layer, smoothing)
        return form.quantize(weight.to(torch.float32), form.group(made.group_size), importance)

    def _importance(self, layer: str, smoothing: Smoothing | None) -> Tensor | None:
        """Return mean x^2 (in,) of the layer's input, of x / s where it is smoothed by s."""
        held, factor = self.importance.get(layer), smoothing.factor(layer) if smoothing else None
        return held if held is None or factor is None else held / factor.to(held.device).square()


def weight_of(module: nn.Module, layer: Layer) -> Tensor:
    """Return the module's weight as (out, in): Conv1D stores the transpose."""
    return module.weight.T if layer.transposed else module.weight


def set_weight_(module: nn.Module, layer: Layer, weight: Tensor) -> None:
    """Replace the module's weight by `weight` (out, in)."""
    stored = weight.T if layer.transposed else weight
    kept = module.weight
    module.weight = nn.Parameter(stored.to(dtype=kept.dtype, device=kept.device).contiguous(), requires_grad=False)


class _QuantizedInputs:
    """Pre-hooks that quantize activations; layers that share an input (q, k and v) share its quantized form."""

    def __init__(self, formats: Mapping[str, Format]) -> None:
        self.formats = formats
        self._last: tuple[Tensor, tuple, Tensor] | None = None

    def hook(self, made: LayerPlan, divisor: Tensor | None):
        def quantize(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self._quantized(args[0], made, divisor), *args[1:])

        return quantize

    def _quantized(self, values: Tensor, made: LayerPlan, divisor: Tensor | None) -> Tensor:
        asked = (made.aq, made.group_size, id(divisor))
        if self._last and self._last[0] is values and self._last[1] == asked:
            return self._last[2]
        given = values if divisor is None else values / divisor.to(values.device, values.dtype)
        result = given if made.aq == UNQUANTIZED else self.formats[made.aq].roundtrip(given, made.group_size)
        if given.requires_grad and made.aq != UNQUANTIZED:
            result = given + (result - given).detach()  # a gradient passes the rounding as if it were not there
        self._last = (values, asked, result.to(values.dtype))
        return self._last[2]


@contextmanager
def quantized_inputs(block: Block, plan: Plan, formats: Mapping[str, Format]) -> Iterator[None]:
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
    """Replace each weight of the block by its quantized value, smoothed before where the plan says so."""
    if plan.smoothing is not None:
        smooth_(block, plan.smoothing, info_layers)
    for name, module in block.layers.items():
        layer, made = info_layers.get(name), plan.of(name)
        if layer is not None and made.wq != UNQUANTIZED:
            set_weight_(module, layer, planned_weight(name, weight_of(module, layer), plan, weights))


def planned_weight(name: str, weight: Tensor, plan: Plan, weights: QuantizedWeights) -> Tensor:
    """Return a layer's weight (out, in) as its plan has it, float32: already smoothed `weight` rounded, or what is stored beside the plan."""
    if plan.of(name).wq == CHANNELS:
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
    """Return whether a plan gives some activations one scale for a whole window: windows must then be run as they are."""
    return any(formats[made.aq].scope == "tensor" for made in plan.layers.values())


def applied(plan: Plan, info: ModelInfo, weights: QuantizedWeights) -> Visit:
    """Return the visitor that runs every block as the plan has it. Raises `UserError` where a format does not fit its layer."""
    check_columns(plan, info, weights.formats)
    layers = {layer.name: layer for layer in info.layers}

    spans_windows = scales_span_windows(plan, weights.formats)

    def visit(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        quantize_weights_(block, plan, layers, weights)
        # Experts get the tokens of all windows in one list.
        apart = spans_windows and has_experts(block.module)
        with quantized_inputs(block, plan, weights.formats):
            return (window_by_window(forward) if apart else forward)(hidden)

    return visit
