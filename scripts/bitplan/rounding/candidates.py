"""A database of rounded candidates: the codes of each layer in each format of a palette, rounded once; plans take theirs from it.

Candidates are rounded on the inputs of the full-precision model, which do not depend on a plan. Rounding a plan in one walk, on the outputs of
its own rounded blocks, is better and takes as long for each plan as a database takes for each format.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.progress import progress
from bitplan.core.resume import blocks_beside, digest_of
from bitplan.formats.fitting import fitting_format
from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel
from bitplan.plans.apply import weight_of
from bitplan.plans.compressed import block_file, finish_folder
from bitplan.plans.layer_plan import LayerPlan
from bitplan.plans.plan import Plan, check_columns
from bitplan.plans.rounded import RoundedLayer, RoundedModel, read_finished_block, read_rounded_block, write_rounded
from bitplan.rounding.columns import LayerToRound, no_moments
from bitplan.rounding.grids import is_rounded
from bitplan.rounding.layer import FEEDBACK, round_layer
from bitplan.rounding.model import ModelRounding, names_to_round, note_of, with_moments
from bitplan.statistics.shrinkage import HalvedMoments, collect_halves

FOLDER = "candidates"
FINGERPRINT, CANDIDATE = "model", "candidate"
HINT = "Add it with scripts/round_candidates.py, or round the plan with --calibration"


def candidate_name(layer: str, choice: LayerPlan) -> str:
    """Return the name of a candidate in the database, e.g. "model.layers.0.mlp.up_proj@q4_k:256"."""
    return f"{layer}@{choice.wq}:{FORMATS[choice.wq].group(choice.group_size)}"


def fitting_candidates(layer: Layer, palette: Sequence[LayerPlan]) -> list[LayerPlan]:
    """Return a layer's candidates: each format, or the substitute that its rows fit; those without codes are left out."""
    fitting = (replace(choice, wq=fitting_format(choice.wq, layer.shape[1])) for choice in palette)
    unlike = {candidate_name(layer.name, choice): choice for choice in fitting if is_rounded(choice.wq)}
    return list(unlike.values())


def database_bytes(info: ModelInfo, palette: Sequence[LayerPlan]) -> int:
    """Return the bytes of all candidates' codes and scales, as they are stored."""

    @cache
    def row_bytes(columns: int, form: str, group: int) -> int:
        row = FORMATS[form].quantize(torch.zeros(1, columns), group, torch.ones(columns))
        return FORMATS[form].pack(row).nbytes

    sizes = (
        layer.shape[0] * row_bytes(layer.shape[1], choice.wq, FORMATS[choice.wq].group(choice.group_size))
        for layer in info.quantizable
        for choice in fitting_candidates(layer, palette)
    )
    return sum(sizes)


def check_room(folder: Path, size: int) -> None:
    """Raise `UserError` if the disk of a folder, which need not exist, has fewer free bytes than `size`."""
    there = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        what = f"has {free / 1e9:.3g} GB free, but the candidates take {size / 1e9:.3g} GB"
        raise user_error("CANDIDATES-NO-ROOM", folder, what, "Use fewer formats in --palette, or another disk")


@dataclass
class _Candidates:
    """The visitor of the walk over the full-precision model, and a row of figures for each candidate."""

    info: ModelInfo
    palette: Sequence[LayerPlan]
    settings: ModelRounding
    partial: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        blocks = 1 + max(layer.block for layer in self.info.quantizable)
        self._bar = progress(range(blocks), blocks, "blocks")

    @torch.no_grad()
    def visit(self, block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        """Round a block's candidates, or find them done by an interrupted run, and return the outputs of the full-precision block."""
        next(self._bar, None)
        done = read_finished_block(self.partial, block.index)
        notes = done[1] if done else self._rounded(block, collect_halves(block, hidden, forward))
        self.rows += notes.values()
        return forward(hidden)

    def _rounded(self, block: Block, moments: Mapping[str, HalvedMoments]) -> dict[str, dict[str, Any]]:
        layers, notes = {}, {}
        for layer in (each for each in self.info.quantizable if each.name in block.layers):
            weight = weight_of(block.layers[layer.name], layer).detach().to(torch.float32)
            for choice in fitting_candidates(layer, self.palette):
                request = self._request(layer.name, weight, choice, moments.get(layer.name))
                result, key = round_layer(request, FEEDBACK, self.settings.descents), candidate_name(layer.name, choice)
                layers[key] = RoundedLayer(result.quantized, choice.wq, request.group)
                notes[key] = {**note_of(request, result), CANDIDATE: key, FINGERPRINT: self.info.fingerprint}
        write_rounded(self.partial, block.index, layers, notes)
        return notes

    def _request(self, name: str, weight: Tensor, choice: LayerPlan, moments: HalvedMoments | None) -> LayerToRound:
        form = FORMATS[choice.wq]
        group, damping = form.group(choice.group_size), self.settings.damping
        return with_moments(
            LayerToRound(name, weight, no_moments(weight), form, group, damping), moments, self.settings
        )


def round_candidates(
    model: StreamedModel,
    info: ModelInfo,
    palette: Sequence[LayerPlan],
    tokens: Tensor,
    settings: ModelRounding,
    folder: Path,
) -> tuple[Mapping[str, Any], ...]:
    """Write the database into a folder, which is replaced when all is done, and return a row of figures for each candidate.

    Every layer is rounded with error feedback in each format on windows of tokens (sequences, length); one block is in memory. An
    interrupted run resumes after the last finished block, from `folder`.partial.
    """
    facts = {"model": info.fingerprint, "palette": list(palette), "settings": settings, "tokens": tokens}
    with blocks_beside(folder, digest_of(facts)) as partial:
        walk = _Candidates(info, palette, settings, partial)
        model.run(tokens, walk.visit)
        finish_folder(partial, folder)
    return tuple(walk.rows)


def take_candidates(
    plan: Plan, info: ModelInfo, database: Path, folder: Path
) -> tuple[Plan, tuple[Mapping[str, Any], ...]]:
    """Return the plan with the codes of its layers' candidates, which are copied into a folder, and a row of figures for each layer.

    Raises `UserError` for a plan with smoothing, for another model's database, and for layers whose candidate it lacks.
    """
    check_columns(plan, info)
    if plan.smoothing is not None:
        what = "has smoothing factors, and candidates are rounded without"
        raise user_error("CANDIDATES-SMOOTHED", "--plan", what, "Round the plan with --calibration")
    keys = {name: candidate_name(name, plan.of(name)) for name in names_to_round(plan, info)}
    by_block = {layer.name: layer.block for layer in info.quantizable}
    rows: list[Mapping[str, Any]] = []
    with blocks_beside(folder, digest_of({"plan": keys, "database": str(database)})) as partial:
        for block in sorted({by_block[name] for name in keys}):
            own = {name: key for name, key in keys.items() if by_block[name] == block}
            layers, notes = _taken(own, block_file(database, block), info)
            write_rounded(partial, block, layers, notes)
            rows += notes.values()
        rounded = RoundedModel(finish_folder(partial, folder), FEEDBACK)
    return replace(plan, rounded=rounded), tuple(rows)


def _taken(
    keys: Mapping[str, str], path: Path, info: ModelInfo
) -> tuple[dict[str, RoundedLayer], dict[str, dict[str, Any]]]:
    """Return the layers {name: candidate} of a block and their figures from its file in the database."""
    layers, notes = read_rounded_block(path) if path.is_file() else ({}, {})
    if any(note.get(FINGERPRINT) != info.fingerprint for note in notes.values()):
        raise user_error("CANDIDATES-OTHER-MODEL", path, "holds candidates of another model", "Use the same --model")
    if absent := [key for key in keys.values() if key not in layers]:
        more = f" and {len(absent) - 1} more of this block" if absent[1:] else ""
        raise user_error("CANDIDATES-ABSENT", path, f"lacks {absent[0]}{more}", HINT)
    return {name: layers[key] for name, key in keys.items()}, {name: notes[key] for name, key in keys.items()}
