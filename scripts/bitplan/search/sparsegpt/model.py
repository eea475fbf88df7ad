"""A whole model compressed in one walk: each block's layers on the inputs that the compressed blocks before it give.

What is done is kept in a folder beside the result, a file for each block: a run that was stopped goes on after the last whole block.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitplan.core.progress import progress
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel
from bitplan.plans.apply import set_weight_
from bitplan.plans.compressed import (
    Compressed,
    CompressedLayer,
    block_file,
    drop_if_empty,
    finish_folder,
    pack_mask,
    prepare_folder,
    read_block,
    write_block,
)
from bitplan.search.sparsegpt.layer import Compressed as MadeLayer
from bitplan.search.sparsegpt.layer import SparseGPT
from bitplan.search.sparsegpt.report import QuantizationStats
from bitplan.search.sparsegpt.settings import ModelSettings, blocks_of
from bitplan.statistics.hessian import InputMoments, collect_moments


def stored_layer(made: MadeLayer) -> CompressedLayer:
    """Return what is kept of a compressed weight, on the CPU."""
    mask = {"pruned": pack_mask(made.pruned.cpu())} if made.pruned.any() else {}
    if made.grid is None:
        return CompressedLayer({"values": made.values.to("cpu", torch.float32).contiguous(), **mask})
    grid = made.grid
    parts = {
        "codes": made.codes.to("cpu", torch.int8 if grid.symmetric else torch.uint8).contiguous(),
        "widths": made.widths.to("cpu", torch.uint8),
        "scale": grid.scale.to("cpu", torch.float16).contiguous(),
        **mask,
    }
    if not grid.symmetric:
        parts["zero"] = grid.zero.to("cpu", torch.uint8).contiguous()
    return CompressedLayer(parts, grid.widths, grid.group)


def _note(name: str, layer: Layer, made: MadeLayer, stored: CompressedLayer) -> dict[str, Any]:
    """Return the statistics of a layer: what `--output-stats` has a row of."""
    bits = stored.stored_bits
    return {
        "layer": name,
        "category": layer.category,
        "params": layer.params,
        "channels": layer.shape[1],
        "mean_width": stored.widths.to(torch.float64).mean().item(),
        "pruned": int(made.pruned.sum()),
        "bits_dense": bits.dense,
        "bits_bitmap": bits.bitmap,
        "importance_min": made.scores.min().item(),
        "importance_max": made.scores.max().item(),
        "mse": None if made.loss is None else made.loss / 2 / layer.shape[0],
    }


STATISTICS = (
    *("layer", "category", "params", "channels", "mean_width", "pruned", "bits_dense", "bits_bitmap"),
    *("importance_min", "importance_max", "mse"),
)


@dataclass
class _Compressing:
    """The visitor of the walk, and what it has made so far."""

    info: ModelInfo
    settings: ModelSettings
    partial: Path
    stats: QuantizationStats = field(default_factory=QuantizationStats)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._layers = {layer.name: layer for layer in self.info.quantizable}
        self._blocks = blocks_of(self.info)
        self._bar = progress(range(self._blocks), self._blocks, "blocks")

    def visit(self, block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        """Compress a block, or take up what an earlier run has made of it, and return its outputs."""
        next(self._bar, None)
        file = block_file(self.partial, block.index)
        layers, notes = read_block(file) if file.exists() else self._compressed(block, hidden, forward)
        for name, layer in layers.items():
            device = block.layers[name].weight.device
            set_weight_(block.layers[name], self._layers[name], layer.weight().to(device))
            self._note_(layer, notes[name])
        return forward(hidden)

    def _note_(self, layer: CompressedLayer, note: dict[str, Any]) -> None:
        self.rows.append(note)
        ends = [note["importance_min"], note["importance_max"]]
        if layer.options:
            self.stats.add_(note["layer"], layer.widths.tolist(), ends)

    def _compressed(
        self, block: Block, hidden: Tensor, forward: Forward
    ) -> tuple[dict[str, CompressedLayer], dict[str, Any]]:
        with collect_moments(block) as moments:
            forward(hidden)
        layers, notes = {}, {}
        for name, module in block.layers.items():
            if name in self._layers:
                made = self._one(name, module, moments.get(name))
                layers[name] = stored_layer(made)
                notes[name] = _note(name, self._layers[name], made, layers[name])
        write_block(self.partial, block.index, layers, notes)
        return layers, notes

    def _one(self, name: str, module: nn.Module, moments: InputMoments | None) -> MadeLayer:
        settings = self.settings
        gpt = SparseGPT(module, name, None, settings.channels, moments)
        gpt.quantizer = settings.quantizer()
        pruning = settings.pruning
        return gpt.fasterprune(
            pruning.sparsity,
            pruning.prunen,
            pruning.prunem,
            settings.target_of(self._layers[name], self._blocks),
            settings.method,
            settings.blocksize,
            settings.percdamp,
            settings.compensate,
        )


@dataclass(frozen=True)
class CompressedModel:
    """The compressed layers, the statistics of the run, and a row of figures for each layer."""

    compressed: Compressed
    stats: QuantizationStats
    rows: tuple[Mapping[str, Any], ...]


def compress_model(
    model: StreamedModel, info: ModelInfo, tokens: Tensor, settings: ModelSettings, dtype: str, folder: Path
) -> CompressedModel:
    """Compress every quantizable layer on windows of tokens (sequences, length), into the folder, which is replaced when all is done.

    Until then the blocks are in `folder`.partial. Raises `UserError` for settings that do not fit the model.
    """
    settings.check(info)
    partial = folder.with_name(f"{folder.name}.partial")
    prepare_folder(partial, settings.digest(info, tokens, dtype))
    run = _Compressing(info, settings, partial)
    try:
        model.run(tokens, run.visit)
    finally:
        drop_if_empty(partial)
    return CompressedModel(finish_folder(partial, folder), run.stats, tuple(run.rows))
