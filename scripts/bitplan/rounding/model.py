"""A whole plan rounded in one walk: each block's layers on the inputs that the rounded blocks before it give.

What is done is kept in a folder beside the result, a file for each block: a run that was stopped goes on after the last whole block.
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
from bitplan.core.resume import blocks_beside
from bitplan.formats.facts import UNQUANTIZED
from bitplan.models.layers import ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel
from bitplan.plans.apply import QuantizedWeights, planned_weight, quantized_inputs, set_weight_, smooth_, weight_of
from bitplan.plans.compressed import finish_folder
from bitplan.plans.plan import Plan, check_columns
from bitplan.plans.rounded import RoundedLayer, RoundedModel, finished_block, write_rounded
from bitplan.rounding.columns import DAMPING, LayerToRound
from bitplan.rounding.grids import GRIDS
from bitplan.rounding.layer import DESCENTS, FEEDBACK, TUNED, RoundedWeight, round_layer, tuned
from bitplan.rounding.tuning import TuningSettings, tune_
from bitplan.statistics.hessian import InputMoments, moments_of

log = logging.getLogger(__name__)
COLUMNS = ("layer", "format", "rounding", "error", "error_nearest", "damping", "why")


@dataclass(frozen=True)
class RoundingSettings:
    """How a plan's layers are rounded: `damping` is added to the diagonal of each Hessian in shares of its mean, `descents` are the
    sweeps of coordinate descent after the one with error feedback."""

    rounding: str = FEEDBACK
    damping: float = DAMPING
    descents: int = DESCENTS
    tuning: TuningSettings = field(default_factory=TuningSettings)


def rounded_names(plan: Plan, info: ModelInfo) -> list[str]:
    """Return the layers of a plan whose format has codes to choose, in model order; none outside the blocks."""
    return [layer.name for layer in info.quantizable if plan.of(layer.name).wq in GRIDS]


def _digest(info: ModelInfo, plan: Plan, settings: RoundingSettings, tokens: Tensor, dtype: str) -> str:
    """Return a SHA-256 of everything that decides the result: also the threads, which may change last digits."""
    asked = {name: made.to_json() for name, made in plan.layers.items()}
    beside = [part.digest for part in (plan.smoothing, plan.compressed) if part is not None]
    told = [info.fingerprint, asked, beside, asdict(settings), dtype, get_num_threads(), __version__]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode() + tokens.numpy().tobytes()).hexdigest()


@dataclass
class _Rounding:
    """The visitor of the walk, and a row of figures for each layer that it has done."""

    info: ModelInfo
    plan: Plan
    settings: RoundingSettings
    partial: Path
    weights: QuantizedWeights
    rows: list[dict[str, Any]] = field(default_factory=list)
    _reference: Tensor | None = None

    def __post_init__(self) -> None:
        self._layers = {layer.name: layer for layer in self.info.layers}
        self._names = frozenset(rounded_names(self.plan, self.info))
        blocks = 1 + max(layer.block for layer in self.info.quantizable)
        self._bar = progress(range(blocks), blocks, "blocks")

    def visit(self, block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        """Round a block, or take up what an earlier run has made of it, and return its outputs."""
        next(self._bar, None)
        target = self._target(hidden, forward)
        self._prepare_(block)
        with quantized_inputs(block, self.plan, self.weights.formats):
            done = finished_block(self.partial, block.index)
            layers, notes = done or self._rounded(block, hidden, target, forward)
            for name, layer in layers.items():
                set_weight_(block.layers[name], self._layers[name], layer.weight())
            self.rows += [notes[name] for name in layers]
            with torch.no_grad():
                return forward(hidden)

    @torch.no_grad()
    def _target(self, hidden: Tensor, forward: Forward) -> Tensor | None:
        """Return the full-precision model's output of the block, where it is tuned towards that."""
        if self.settings.rounding != TUNED:
            return None
        self._reference = forward(hidden if self._reference is None else self._reference)
        return self._reference

    def _prepare_(self, block: Block) -> None:
        """Smooth the block, and give the layers that are not rounded here the weights that the plan has for them."""
        if self.plan.smoothing is not None:
            smooth_(block, self.plan.smoothing, self._layers)
        for name, module in block.layers.items():
            if name in self._layers and name not in self._names and self.plan.of(name).wq != UNQUANTIZED:
                layer = self._layers[name]
                made = planned_weight(name, weight_of(module, layer), self.plan, self.weights)
                set_weight_(module, layer, made)

    def _rounded(
        self, block: Block, hidden: Tensor, target: Tensor | None, forward: Forward
    ) -> tuple[dict[str, RoundedLayer], dict[str, dict[str, Any]]]:
        with moments_of(block) as moments, torch.no_grad():
            forward(hidden)
        names = [name for name in block.layers if name in self._names]
        asked = {name: self._asked(name, block, moments.get(name)) for name in names}
        with torch.no_grad():
            how = (self.settings.rounding, self.settings.descents)
            made = {name: round_layer(layer, *how) for name, layer in asked.items()}
        if target is not None:
            made |= self._tuned(block, asked, made, hidden, target, forward)
        layers = {
            name: RoundedLayer(each.quantized, asked[name].form.name, asked[name].group) for name, each in made.items()
        }
        notes = {name: _note(asked[name], each) for name, each in made.items()}
        write_rounded(self.partial, block.index, layers, notes)
        return layers, notes

    def _tuned(
        self,
        block: Block,
        asked: Mapping[str, LayerToRound],
        made: Mapping[str, RoundedWeight],
        hidden: Tensor,
        target: Tensor,
        forward: Forward,
    ) -> dict[str, RoundedWeight]:
        """Return the layers of a block tuned together; none where that does not lower the error of its outputs."""
        found = {name: each.columns for name, each in made.items() if each.columns is not None}
        for name, each in made.items():
            if each.columns is None:
                set_weight_(block.layers[name], self._layers[name], asked[name].values(each.quantized))
        before, after = tune_(block.layers, found, hidden, target, forward, self.settings.tuning)
        log.info("block %d: error of its outputs %.4g, tuned %.4g", block.index, before, after)
        return {name: tuned(asked[name], made[name]) for name in found} if after < before else {}

    def _asked(self, name: str, block: Block, moments: InputMoments | None) -> LayerToRound:
        weight = weight_of(block.layers[name], self._layers[name]).detach().to(torch.float32)
        hessian = weight.new_zeros(weight.shape[1], weight.shape[1]) if moments is None else moments.hessian
        made = self.plan.of(name)
        form = self.weights.formats[made.wq]
        return LayerToRound(name, weight, hessian, form, form.group(made.group_size), self.settings.damping)


def _note(asked: LayerToRound, made: RoundedWeight) -> dict[str, Any]:
    """Return the figures of a layer: errors are mean squares of the change of its outputs."""
    rows = 2 * len(asked.weight)
    facts = {"layer": asked.name, "format": asked.form.name, "rounding": made.rounding}
    errors = {"error": made.error / rows, "error_nearest": made.error_nearest / rows}
    return {**facts, **errors, "damping": made.damping, "why": made.why}


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

    The codes are written into the folder, which is replaced when all is done; until then the blocks are in `folder`.partial. Raises
    `UserError` for a plan without a layer to round, and for formats that do not fit their layers.
    """
    check_columns(plan, info)
    if not rounded_names(plan, info):
        what = "has no layer inside the blocks with a format that can be rounded"
        raise user_error("ROUNDING-NOTHING", "plan", what, f"Such formats are {', '.join(list(GRIDS)[:6])} ...")
    plan = replace(plan, rounded=None)
    with blocks_beside(folder, _digest(info, plan, settings, tokens, dtype)) as partial:
        run = _Rounding(info, plan, settings, partial, QuantizedWeights(limit=0))
        model.run(tokens, run.visit, differentiable=settings.rounding == TUNED)
        rounded = RoundedModel(finish_folder(partial, folder), settings.rounding)
    return replace(plan, rounded=rounded), tuple(run.rows)
