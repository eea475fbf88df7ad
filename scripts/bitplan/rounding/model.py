"""Rounds a whole plan in one walk: each block's layers on the outputs of the rounded blocks before it.

Finished blocks are saved in a folder next to the result, one file each. An interrupted run resumes after the last finished block.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, get_num_threads

from bitplan import __version__
from bitplan.core.errors import Problem
from bitplan.core.progress import progress
from bitplan.core.resume import blocks_beside
from bitplan.formats.facts import UNQUANTIZED
from bitplan.models.devices import return_free_memory
from bitplan.models.layers import ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel
from bitplan.plans.apply import QuantizedWeights, planned_weight, quantize_inputs, set_weight_, smooth_, weight_of
from bitplan.plans.compressed import finish_folder
from bitplan.plans.plan import Plan, check_columns
from bitplan.plans.rounded import RoundedLayer, RoundedModel, read_finished_block, write_rounded
from bitplan.rounding.columns import DAMPING, LayerToRound, no_moments
from bitplan.rounding.grids import GRIDS, is_rounded
from bitplan.rounding.held_out import held_out_ratio, needs_judging
from bitplan.rounding.layer import (
    DESCENTS,
    FEEDBACK,
    NEAREST,
    REFERENCE_SHARE,
    TUNED,
    RoundedWeight,
    apply_tuning,
    round_layer,
)
from bitplan.rounding.tuning import TuningSettings, tune_
from bitplan.statistics.hessian import CrossMoments, inputs_of
from bitplan.statistics.shrinkage import HalvedMoments, collect_halves, count_window_, shrink_crosses_

log = logging.getLogger(__name__)
COLUMNS = ("layer", "format", "rounding", "error", "error_nearest", "tokens", "columns", "shrinkage", "damping", "why")


@dataclass(frozen=True)
class ModelRounding:
    """How a plan's layers are rounded.

    `damping` times the mean of each Hessian's diagonal is added to it; `descents` is the number of sweeps of coordinate descent
    after error feedback.
    """

    rounding: str = FEEDBACK
    damping: float = DAMPING
    descents: int = DESCENTS
    reference_share: float = REFERENCE_SHARE
    tuning: TuningSettings = field(default_factory=TuningSettings)


def names_to_round(plan: Plan, info: ModelInfo) -> list[str]:
    """Return the layers in blocks whose format has codes, in model order."""
    return [layer.name for layer in info.quantizable if is_rounded(plan.of(layer.name).wq)]


def _digest(info: ModelInfo, plan: Plan, settings: ModelRounding, tokens: Tensor, dtype: str) -> str:
    """Return a SHA-256 of everything that the result depends on, including threads, which may change last digits."""
    choices = {name: choice.to_json() for name, choice in plan.layers.items()}
    digests = [part.digest for part in (plan.smoothing, plan.compressed) if part is not None]
    facts = [info.fingerprint, choices, digests, asdict(settings), dtype, get_num_threads(), __version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + tokens.numpy().tobytes()).hexdigest()


@dataclass
class _Rounding:
    """The visitor of the walk, and a row of figures for each finished layer."""

    info: ModelInfo
    plan: Plan
    settings: ModelRounding
    partial: Path
    weights: QuantizedWeights
    rows: list[dict[str, Any]] = field(default_factory=list)
    _reference: Tensor | None = None

    def __post_init__(self) -> None:
        self._layers = {layer.name: layer for layer in self.info.layers}
        self._names = frozenset(names_to_round(self.plan, self.info))
        blocks = 1 + max(layer.block for layer in self.info.quantizable)
        self._bar = progress(range(blocks), blocks, "blocks")

    def visit(self, block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        """Round a block, or load it from an interrupted run, and return its outputs."""
        next(self._bar, None)
        target, cross = self._target(hidden, forward), {}
        self._prepare_(block)
        done = read_finished_block(self.partial, block.index)
        if target is not None and not done:
            cross = self._cross(block, hidden, forward)
        self._reference = target
        with quantize_inputs(block, self.plan, self.weights.formats):
            layers, notes = done or self._rounded(block, hidden, target, cross, forward)
            for name, layer in layers.items():
                set_weight_(block.layers[name], self._layers[name], layer.weight())
            self.rows += [notes[name] for name in layers]
            with torch.no_grad():
                return forward(hidden)

    @torch.no_grad()
    def _target(self, hidden: Tensor, forward: Forward) -> Tensor | None:
        """Return the block's output in the full-precision model; None if rounding does not aim at it."""
        settings = self.settings
        if settings.rounding == NEAREST or (settings.rounding != TUNED and not settings.reference_share):
            return None
        return forward(hidden if self._reference is None else self._reference)

    @torch.no_grad()
    def _cross(self, block: Block, hidden: Tensor, forward: Forward) -> dict[str, CrossMoments]:
        """Return the cross moments of the layers' inputs with those in the reference model; none of the first block, whose inputs are equal."""
        found: dict[str, CrossMoments] = {}
        if self._reference is None or not self.settings.reference_share:
            return found
        whole = {name: replace(made, aq=UNQUANTIZED) for name, made in self.plan.layers.items()}
        windows = zip(hidden.split(1), self._reference.split(1), strict=True)
        for number, (window, exact) in enumerate(windows):
            reference = self._inputs(block, replace(self.plan, layers=whole), exact, forward)
            inputs = self._inputs(block, self.plan, window, forward)
            shared: dict[tuple[int, int], CrossMoments] = {}
            for name in (each for each in inputs if each in self._names and each in reference):
                given, wide = inputs[name], reference[name]
                # An expert that the router gives a part of the window may get other tokens in the reference model.
                if not given.shape[:-1].numel() == wide.shape[:-1].numel() == window.shape[1]:
                    continue
                key = id(given), id(wide)
                if key not in shared:
                    shared[key] = found.get(name) or CrossMoments.empty(given.shape[-1], given.device)
                    count_window_(shared[key], given, wide, number, len(hidden))
                found[name] = shared[key]
        return found

    def _inputs(self, block: Block, plan: Plan, window: Tensor, forward: Forward) -> dict[str, Tensor]:
        """Return what each of the block's layers reads of a window, smoothed and quantized as a plan says."""
        with quantize_inputs(block, plan, self.weights.formats), inputs_of(block) as inputs:
            forward(window)
        return dict(inputs)

    def _prepare_(self, block: Block) -> None:
        """Smooth the block, and set the planned weights of the layers that are not rounded here."""
        if self.plan.smoothing is not None:
            smooth_(block, self.plan.smoothing, self._layers)
        for name, module in block.layers.items():
            if name in self._layers and name not in self._names and self.plan.of(name).wq != UNQUANTIZED:
                layer = self._layers[name]
                weight = planned_weight(name, weight_of(module, layer), self.plan, self.weights)
                set_weight_(module, layer, weight)

    def _rounded(
        self, block: Block, hidden: Tensor, target: Tensor | None, cross: dict[str, CrossMoments], forward: Forward
    ) -> tuple[dict[str, RoundedLayer], dict[str, dict[str, Any]]]:
        pairs = self._each(block, hidden, cross, forward)
        if self.settings.rounding == TUNED:
            pairs = self._tuned(block, list(pairs), hidden, target, forward)
        layers, notes = {}, {}
        for request, result in pairs:
            layers[request.name] = RoundedLayer(result.quantized, request.form.name, request.group)
            notes[request.name] = note_of(request, result)
            del request, result  # as large as a block: gone before the next is made
        layers, notes = ({name: made[name] for name in block.layers if name in made} for made in (layers, notes))
        write_rounded(self.partial, block.index, layers, notes)
        return layers, notes

    @torch.no_grad()
    def _each(
        self, block: Block, hidden: Tensor, cross: dict[str, CrossMoments], forward: Forward
    ) -> Iterator[tuple[LayerToRound, RoundedWeight]]:
        """Yield each layer to round and how it was rounded, the widest first. Moments are dropped with the last layer that needs them; `cross` gets empty."""
        crosses = shrink_crosses_(cross)  # before there are moments, which take as much
        moments = dict(collect_halves(block, hidden, forward))
        names = [each for each in block.layers if each in self._names]
        # Those of the widest layer take most of the memory: they should not wait for the others.
        for name in sorted(names, key=lambda each: -self._layers[each].shape[1]):
            request = self._request(name, block, moments.pop(name, None), crosses.pop(name, None))
            result = round_layer(request, self.settings.rounding, self.settings.descents)
            # Handed over: while this waits for the next call, it holds neither.
            pair = [(request, result)]
            del request, result
            yield pair.pop()
            return_free_memory()

    def _tuned(
        self,
        block: Block,
        pairs: Sequence[tuple[LayerToRound, RoundedWeight]],
        hidden: Tensor,
        target: Tensor,
        forward: Forward,
    ) -> list[tuple[LayerToRound, RoundedWeight]]:
        """Return the layers of a block tuned together; as they were if that does not lower the error of its outputs."""
        requests, results = ({pair[0].name: pair[side] for pair in pairs} for side in (0, 1))
        columns = {name: result.columns for name, result in results.items() if result.columns is not None}
        for name, result in results.items():
            if result.columns is None:
                set_weight_(block.layers[name], self._layers[name], requests[name].values(result.quantized))
        before, after = tune_(block.layers, columns, hidden, target, forward, self.settings.tuning)
        log.info("block %d: error of its outputs %.4g, tuned %.4g", block.index, before, after)
        if after < before:
            results |= {name: apply_tuning(results[name]) for name in columns}
        return [(requests[name], result) for name, result in results.items()]

    def _request(self, name: str, block: Block, moments: HalvedMoments | None, cross: Tensor | None) -> LayerToRound:
        weight = weight_of(block.layers[name], self._layers[name]).detach().to(torch.float32)
        choice = self.plan.of(name)
        form = self.weights.formats[choice.wq]
        aim = {} if cross is None else {"drift": weight @ cross, "share": self.settings.reference_share}
        del cross
        group, damping = form.group(choice.group_size), self.settings.damping
        layer = LayerToRound(name, weight, no_moments(weight), form, group, damping, **aim)
        return with_moments(layer, moments, self.settings)


def with_moments(layer: LayerToRound, moments: HalvedMoments | None, settings: ModelRounding) -> LayerToRound:
    """Return a layer with H of its moments, and with feedback judged on tokens held out where there are few; unchanged without moments."""
    if moments is None:
        return layer
    judged = settings.rounding != NEAREST and layer.form.name in GRIDS and needs_judging(layer, moments)
    held_out = held_out_ratio(layer, moments, settings.descents) if judged else None
    text = {"tokens": moments.tokens, "shrinkage": moments.shrinkage, "held_out": held_out}
    return replace(layer, hessian=moments.hessian, **text)


def note_of(request: LayerToRound, result: RoundedWeight) -> dict[str, Any]:
    """Return the figures of a layer; errors are the mean squared change of its outputs."""
    rows = 2 * len(request.weight)
    facts = {"layer": request.name, "format": request.form.name, "rounding": result.rounding}
    errors = {"error": result.error / rows, "error_nearest": result.error_nearest / rows}
    text = {"tokens": request.tokens, "columns": request.weight.shape[1], "shrinkage": request.shrinkage}
    return {**facts, **errors, **text, "damping": result.damping, "why": result.why}


def warn_of_few_tokens(names: Sequence[str], info: ModelInfo, tokens: int) -> None:
    """Log a warning if some of the layers have more columns than there are tokens."""
    shapes = {layer.name: layer.shape[1] for layer in info.quantizable}
    wide = [shapes[name] for name in names if shapes[name] > tokens]
    if wide:
        what = (
            f"{tokens} tokens are fewer than the {max(wide)} columns of {len(wide)} layers, whose rounding gains little"
        )
        log.warning("%s", Problem("ROUNDING-FEW-TOKENS", "calibration", what, "Use more windows, or longer ones"))


def round_plan(
    model: StreamedModel,
    info: ModelInfo,
    plan: Plan,
    tokens: Tensor,
    settings: ModelRounding,
    folder: Path,
    dtype: str = "fp32",
) -> tuple[Plan, tuple[Mapping[str, Any], ...]]:
    """Return the plan with its layers rounded on windows of tokens (sequences, length), and a row of figures for each.

    The codes are written into the folder, which is replaced when all is done; until then the blocks are in `folder`.partial. A plan
    without a layer to round has an empty one, and the log says so. Raises `UserError` for formats that do not fit their layers.
    """
    check_columns(plan, info)
    plan = replace(plan, rounded=None)
    with blocks_beside(folder, _digest(info, plan, settings, tokens, dtype)) as partial:
        run = _Rounding(info, plan, settings, partial, QuantizedWeights(limit=0))
        if not (names := names_to_round(plan, info)):
            log.warning("the plan has no layer with a format of codes inside the blocks: there is nothing to round")
        else:
            warn_of_few_tokens(names, info, tokens.numel())
            model.run(tokens, run.visit, differentiable=settings.rounding == TUNED)
        rounded = RoundedModel(finish_folder(partial, folder), settings.rounding)
    return replace(plan, rounded=rounded), tuple(run.rows)
