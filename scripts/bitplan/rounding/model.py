"""Rounds a whole plan in one walk: each block's layers on the outputs of the rounded blocks before it.

Finished blocks are saved in a folder next to the result, one file each. An interrupted run resumes after the last finished block.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, get_num_threads

from bitplan import __version__
from bitplan.core.errors import user_error
from bitplan.core.progress import progress
from bitplan.formats.facts import UNQUANTIZED
from bitplan.models.layers import ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel
from bitplan.plans.apply import QuantizedWeights, planned_weight, quantize_inputs, set_weight_, smooth_, weight_of
from bitplan.plans.compressed import drop_if_empty, finish_folder, prepare_folder
from bitplan.plans.plan import Plan, check_columns
from bitplan.plans.rounded import RoundedLayer, RoundedModel, read_finished_block, write_rounded
from bitplan.rounding.columns import DAMPING, LayerToRound
from bitplan.rounding.grids import GRIDS
from bitplan.rounding.layer import DESCENTS, FEEDBACK, TUNED, RoundedWeight, apply_tuning, round_layer
from bitplan.rounding.tuning import TuningSettings, tune_
from bitplan.statistics.hessian import InputMoments, collect_moments

log = logging.getLogger(__name__)
COLUMNS = ("layer", "format", "rounding", "error", "error_nearest", "damping", "why")


@dataclass(frozen=True)
class RoundingSettings:
    """How a plan's layers are rounded.

    `damping` times the mean of each Hessian's diagonal is added to it; `descents` is the number of sweeps of coordinate descent
    after error feedback.
    """

    rounding: str = FEEDBACK
    damping: float = DAMPING
    descents: int = DESCENTS
    tuning: TuningSettings = field(default_factory=TuningSettings)


def names_to_round(plan: Plan, info: ModelInfo) -> list[str]:
    """Return the layers in blocks whose format has codes to choose, in model order."""
    return [layer.name for layer in info.quantizable if plan.of(layer.name).wq in GRIDS]


def _digest(info: ModelInfo, plan: Plan, settings: RoundingSettings, tokens: Tensor, dtype: str) -> str:
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
    settings: RoundingSettings
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
        target = self._target(hidden, forward)
        self._prepare_(block)
        with quantize_inputs(block, self.plan, self.weights.formats):
            done = read_finished_block(self.partial, block.index)
            layers, notes = done or self._rounded(block, hidden, target, forward)
            for name, layer in layers.items():
                set_weight_(block.layers[name], self._layers[name], layer.weight())
            self.rows += [notes[name] for name in layers]
            with torch.no_grad():
                return forward(hidden)

    @torch.no_grad()
    def _target(self, hidden: Tensor, forward: Forward) -> Tensor | None:
        """Return the block's output in the full-precision model; None unless blocks are tuned."""
        if self.settings.rounding != TUNED:
            return None
        self._reference = forward(hidden if self._reference is None else self._reference)
        return self._reference

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
        self, block: Block, hidden: Tensor, target: Tensor | None, forward: Forward
    ) -> tuple[dict[str, RoundedLayer], dict[str, dict[str, Any]]]:
        with collect_moments(block) as moments, torch.no_grad():
            forward(hidden)
        names = [name for name in block.layers if name in self._names]
        requests = {name: self._request(name, block, moments.get(name)) for name in names}
        with torch.no_grad():
            how = (self.settings.rounding, self.settings.descents)
            results = {name: round_layer(layer, *how) for name, layer in requests.items()}
        if target is not None:
            results |= self._tuned(block, requests, results, hidden, target, forward)
        layers = {
            name: RoundedLayer(result.quantized, requests[name].form.name, requests[name].group)
            for name, result in results.items()
        }
        notes = {name: _note(requests[name], result) for name, result in results.items()}
        write_rounded(self.partial, block.index, layers, notes)
        return layers, notes

    def _tuned(
        self,
        block: Block,
        requests: Mapping[str, LayerToRound],
        results: Mapping[str, RoundedWeight],
        hidden: Tensor,
        target: Tensor,
        forward: Forward,
    ) -> dict[str, RoundedWeight]:
        """Return the layers of a block tuned together; empty if that does not lower the error of its outputs."""
        columns = {name: result.columns for name, result in results.items() if result.columns is not None}
        for name, result in results.items():
            if result.columns is None:
                set_weight_(block.layers[name], self._layers[name], requests[name].values(result.quantized))
        before, after = tune_(block.layers, columns, hidden, target, forward, self.settings.tuning)
        log.info("block %d: error of its outputs %.4g, tuned %.4g", block.index, before, after)
        return {name: apply_tuning(requests[name], results[name]) for name in columns} if after < before else {}

    def _request(self, name: str, block: Block, moments: InputMoments | None) -> LayerToRound:
        weight = weight_of(block.layers[name], self._layers[name]).detach().to(torch.float32)
        hessian = weight.new_zeros(weight.shape[1], weight.shape[1]) if moments is None else moments.hessian
        choice = self.plan.of(name)
        form = self.weights.formats[choice.wq]
        return LayerToRound(name, weight, hessian, form, form.group(choice.group_size), self.settings.damping)


def _note(request: LayerToRound, result: RoundedWeight) -> dict[str, Any]:
    """Return the figures of a layer; errors are the mean squared change of its outputs."""
    rows = 2 * len(request.weight)
    facts = {"layer": request.name, "format": request.form.name, "rounding": result.rounding}
    errors = {"error": result.error / rows, "error_nearest": result.error_nearest / rows}
    return {**facts, **errors, "damping": result.damping, "why": result.why}


def round_plan(
    model: StreamedModel,
    info: ModelInfo,
    plan: Plan,
    tokens: Tensor,
    settings: RoundingSettings,
    folder: Path,
    dtype: str = "fp32",
) -> tuple[Plan, tuple[Mapping[str, Any], ...]]:
    """Return the plan with its layers rounded on windows of tokens (sequences, length), and a row of figures for each.

    The codes are written to `folder`.partial, which replaces `folder` at the end. Raises `UserError` for a plan without a layer to
    round, and for formats that do not fit their layers.
    """
    check_columns(plan, info)
    if not names_to_round(plan, info):
        what = "has no layer with a format of codes inside the blocks: there is nothing to round"
        raise user_error("plan", what, f"Formats with codes are {', '.join(list(GRIDS)[:6])} ...")
    plan = replace(plan, rounded=None)
    partial = folder.with_name(f"{folder.name}.partial")
    prepare_folder(partial, _digest(info, plan, settings, tokens, dtype))
    run = _Rounding(info, plan, settings, partial, QuantizedWeights(limit=0))
    try:
        model.run(tokens, run.visit, differentiable=settings.rounding == TUNED)
    finally:
        drop_if_empty(partial)
    rounded = RoundedModel(finish_folder(partial, folder), settings.rounding)
    return replace(plan, rounded=rounded), tuple(run.rows)
