"""Candidates at their birth: a block's output when one of its layers alone is quantized, for several formats at once.

What a block computes before it calls the layer is the same for every format, and so is what other layers make of it. So the first
candidate's run notes the outputs of all that is finished by then (attention, when the layer is of the feed-forward part) and of
layers that read one of these (the up projection, when the layer is the gate), and the others take them from there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer
from bitplan.models.walk import Block, Forward
from bitplan.plans.apply import quantize_inputs, set_weight_
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.plans.smoothing import SmoothGroup, Smoothing
from bitplan.sensitivity.local_errors import Choice


@dataclass
class Replay:
    """Outputs of a block's parts that do not depend on `layer`, in the order of the calls, for one batch.

    `work` counts multiply-adds of the layers in the run under way.
    """

    block: Block
    layer: nn.Module
    kept: dict[nn.Module, list[Any]] = field(default_factory=dict)
    work: int = 0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what does not depend on the layer, while the block runs inside the context."""
        reached = False
        same: list[Tensor] = []  # outputs that do not depend on the layer, as they were handed on
        changed: set[nn.Module] = set()

        def note(module: nn.Module, plain: Callable) -> Callable:
            """Return a forward pass of a module that keeps its output where that does not depend on the layer."""

            def forward(*args: Any, **kwargs: Any) -> Any:
                """Compute the output, and keep it unless the layer, or what reads it, has changed it."""
                nonlocal reached
                reached = reached or module is self.layer
                output = self._worked(module, plain, args, kwargs)
                reads_same = module in self._layers and args and any(args[0] is each for each in same)
                if module is self.layer or module in changed or (reached and not reads_same):
                    changed.add(module)
                    return output
                # What goes on inside of it will not be asked for again.
                for part in module.modules():
                    self.kept.pop(part, None) if part is not module else None
                self.kept.setdefault(module, []).append(_copied(output))
                same.extend([output] if isinstance(output, Tensor) else [])
                return output

            return forward

        with self._replaced(note):
            yield

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Take what was noted instead of computing it, while the block runs inside the context."""
        left = {module: list(outputs) for module, outputs in self.kept.items()}

        def take(module: nn.Module, plain: Callable) -> Callable:
            """Return a forward pass of a module that hands on what was noted, as long as there is any, and computes the rest."""

            def forward(*args: Any, **kwargs: Any) -> Any:
                if left.get(module):
                    return _copied(left[module].pop(0))
                return self._worked(module, plain, args, kwargs)

            return forward

        with self._replaced(take):
            yield

    def _worked(self, module: nn.Module, plain: Callable, args: tuple, kwargs: dict) -> Any:
        if module in self._layers:
            given = args[0] if args else next(iter(kwargs.values()))
            self.work += given.numel() // given.shape[-1] * module.weight.numel()
        return plain(*args, **kwargs)

    @cached_property
    def _layers(self) -> frozenset[nn.Module]:
        return frozenset(self.block.layers.values())

    @contextmanager
    def _replaced(self, made: Callable[[nn.Module, Callable], Callable]) -> Iterator[None]:
        """Put another forward in the place of those of the block's layers, norms and direct parts."""
        parts = {*self.block.layers.values(), *self.block.norms.values(), *self.block.module.children()}
        for module in parts:
            module.forward = made(module, module.forward)
        self.work = 0
        try:
            yield
        finally:
            for module in parts:
                del module.forward


def _copied(value: Any) -> Any:
    """Return a copy, since some blocks change in place what a part of theirs returned."""
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(map(_copied, value)) if type(value) in (tuple, list) else value


@contextmanager
def quantized_alone(block: Block, layer: Layer, choice: Choice, weight: Tensor, scale: Tensor | None) -> Iterator[None]:
    """Run the block with `weight` (out, in), Q(W s), in a layer's place and its input quantized as the choice says."""
    module = block.layers[layer.name]
    held = module.weight
    smooth = scale if choice.inputs_change else None
    smoothing = None if smooth is None else Smoothing((SmoothGroup((layer.name,), smooth),))
    plan = Plan({layer.name: LayerPlan(choice.wq, choice.aq, choice.group_size)}, smoothing=smoothing)
    set_weight_(module, layer, weight)
    try:
        with quantize_inputs(block, plan, FORMATS) if choice.inputs_change else nullcontext():
            yield
    finally:
        module.weight = held


def newborn(
    block: Block,
    layer: Layer,
    choices: Sequence[tuple[Choice, Tensor]],
    forward: Forward,
    hidden: Tensor,
    step: int,
    scale: Tensor | None = None,
) -> tuple[list[Tensor], float]:
    """Return the block's output for each choice with its quantized weights (out, in), and the number of block-forwards that took.

    hidden (sequences, length, hidden): the block's input, `step` sequences of which are run at a time; outputs have its shape. A
    run that takes what was noted counts as the share of the layers' multiply-adds that it does.
    """
    states, total = [torch.empty_like(hidden) for _ in choices], 0.0
    for start in range(0, len(hidden), step):
        part, replay = hidden[start : start + step], Replay(block, block.layers[layer.name])
        whole = 0
        for state, (choice, weight) in zip(states, choices, strict=True):
            with quantized_alone(block, layer, choice, weight, scale):
                with replay.taking() if whole else replay.noting():
                    state[start : start + step] = forward(part)
                whole = whole or replay.work
                total += replay.work / whole * len(part) / len(hidden)
    return states, total
