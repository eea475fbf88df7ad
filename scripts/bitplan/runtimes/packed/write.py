"""A plan as a folder of packed safetensors: one file for each block and one for the rest, the weights of one block in memory at a time."""

import json
import shutil
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitplan.core.files import write_folder_aside
from bitplan.core.progress import progress
from bitplan.formats.base import Quantized
from bitplan.formats.table import FORMATS
from bitplan.models.checkpoint import FLOATS, TensorInfo
from bitplan.models.checkpoint_files import INDEX, SINGLE
from bitplan.models.families import place_of
from bitplan.models.finite import check_finite
from bitplan.models.layers import Layer
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import Plan
from bitplan.plans.smoothing import fold_norm
from bitplan.runtimes.fusion import FusionGroup, fusion_groups, refuse_unlike, repaired, unlike
from bitplan.runtimes.packed.packing import Packing, named, pack_layer
from bitplan.runtimes.packed.report import print_report, report_of
from bitplan.runtimes.packed.shards import Content, file_bytes, shard_name, write_shard
from bitplan.runtimes.runtime import ExportJob
from bitplan.runtimes.transformers.checkpoint import stored_once


@dataclass
class _Export:
    """What a job writes: the plan with its fusion groups alike, the scheme of every packed layer by its stored name, and these names by fusion group."""

    packing: Packing
    job: ExportJob
    plan: Plan
    weights: QuantizedWeights
    schemes: dict[str, Hashable] = field(default_factory=dict)
    codes: Counter = field(default_factory=Counter)
    fused: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[str, str]:
        """The model's names of tensors by those in the files."""
        return {key: name for name, key in self.job.checkpoint.loading.names.items()}


def fused_plan(packing: Packing, job: ExportJob) -> tuple[Plan, list[FusionGroup]]:
    """Return the plan as the runtime can hold it, and the groups that were changed.

    Raises `UserError` for groups that differ with `fusion: refuse`, and with `keep` for experts, which are one tensor in the file itself.
    """
    groups = unlike(fusion_groups(packing.judge, job.plan, job.info, packing.fuses))
    if not groups:
        return job.plan, []
    apart = job.settings["fusion"] == "keep" and packing.fuses != "experts"
    if job.settings["fusion"] != "repair" and not apart:
        refuse_unlike(packing.runtime, groups)
    if job.settings["fusion"] == "repair":
        return repaired(job.plan, groups), groups
    return job.plan, []


def write_job(packing: Packing, job: ExportJob) -> Mapping[str, Any]:
    """Write the folder of a job, print what it holds of the plan, and return its report.

    Every packed layer is unpacked again as the runtime does: AssertionError unless that gives the plan's values, bit for bit. Layers
    whose input SmoothQuant would have to divide are stored unsmoothed, as no operation of the model does so.
    """
    plan, repairs = fused_plan(packing, job)
    smoothing = plan.smoothing.folded if plan.smoothing else None
    export = _Export(
        packing, job, replace(plan, smoothing=smoothing), QuantizedWeights(limit=0, importance=dict(job.importance))
    )
    torch.set_num_threads(job.threads)
    with write_folder_aside(job.output) as aside:
        for file in job.checkpoint.others():
            if file.name not in (INDEX, "config.json"):
                shutil.copyfile(file, aside / file.name)
        _write_shards(aside, export)
        _write_config(aside, export)
        size = file_bytes(aside)
    report = report_of(packing.judge, job, export.plan, repairs, export.codes, size)
    print_report(packing.runtime, job.output, report)
    return report


def _by_block(export: _Export) -> list[dict[str, TensorInfo]]:
    """Return the tensors of each block, and last those outside the blocks, by their names in the files."""
    blocks: dict[int, dict[str, TensorInfo]] = {}
    for key, tensor in stored_once(export.job.checkpoint).items():
        blocks.setdefault(place_of(key).index, {})[key] = tensor
    outside = blocks.pop(-1, {})
    return [blocks[index] for index in sorted(blocks)] + ([outside] if outside else [])


def _write_shards(folder: Path, export: _Export) -> None:
    """Write a file for each block, and the index."""
    blocks, weight_map, total = _by_block(export), {}, 0
    for number, tensors in progress(enumerate(blocks, 1), len(blocks), "blocks"):
        name = SINGLE if len(blocks) == 1 else shard_name(number, len(blocks))
        contents = dict(export.packing.arrange(_contents(tensors, export)))
        if export.job.settings["fusion"] != "keep":
            contents = export.packing.share(contents, export.fused.values())
        total += write_shard(folder / name, contents)
        weight_map |= dict.fromkeys(contents, name)
    if len(blocks) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _contents(tensors: Mapping[str, TensorInfo], export: _Export) -> Iterator[tuple[str, Content]]:
    """Yield what is written in the place of a block's tensors, by name."""
    layers = {f"{layer.name}.weight": layer for layer in export.job.info.layers}
    checkpoint = export.job.checkpoint
    for key, tensor in tensors.items():
        name = export.names.get(key)
        layer = layers.get(name)
        if name is not None and tensor.dtype in FLOATS and not checkpoint.known_finite(name):
            check_finite(checkpoint.read([name]), checkpoint.folder)
        if layer is not None and not layer.protected:
            yield from _layer_contents(key, tensor, layer, export)
        else:
            norm = _folded(name, export) if name else None
            yield key, tensor if norm is None else norm


def _folded(name: str, export: _Export) -> Tensor | None:
    """Return part of a norm divided by SmoothQuant's factors, float32; None for any other tensor."""
    norm, _, end = name.rpartition(".")
    smoothing = export.plan.smoothing
    group = smoothing.by_norm.get(norm) if smoothing else None
    if group is None or end not in ("weight", "bias"):
        return None
    values = export.job.checkpoint.read([name], torch.float32)[name]
    return fold_norm(values, group if end == "weight" else replace(group, offset=0.0))


def _layer_contents(key: str, tensor: TensorInfo, layer: Layer, export: _Export) -> Iterator[tuple[str, Content]]:
    """Yield the tensors of a layer: packed, or as they are where the plan leaves it at 16 bits."""
    made, factor = export.plan.of(layer.name), None
    scheme = export.packing.scheme_of(made)
    if export.plan.smoothing is not None:
        factor = export.plan.smoothing.factor(layer.name)
    if scheme is None and factor is None and made.wq != "fp16":
        yield key, tensor
        return
    weight = export.job.checkpoint.read([f"{layer.name}.weight"], torch.float32)[f"{layer.name}.weight"]
    wide = weight if factor is None else weight * factor
    if scheme is None:
        yield key, wide.to(torch.float16) if made.wq == "fp16" else wide
        return
    quantized, value = _quantized(layer, wide, export)
    base = key.removesuffix(".weight")
    export.schemes[base] = scheme
    if layer.fusion_group:
        export.fused.setdefault(layer.fusion_group, []).append(base)
    yield from named(base, pack_layer(export.packing, layer.name, quantized, scheme, value))


def _quantized(layer: Layer, weight: Tensor, export: _Export) -> tuple[Quantized, Tensor]:
    """Return a layer's codes, rounded before where the plan has such codes for this format and this input, and their values."""
    made, rounded = export.plan.of(layer.name), export.plan.rounded
    form = FORMATS[made.wq]
    group = form.group(made.group_size)
    quantized = None
    if rounded is not None and layer.name in rounded:
        codes = rounded.layer(layer.name)
        fits = (codes.form, codes.group) == (made.wq, group) and not _divided(layer, export)
        quantized = codes.quantized if fits else None
        export.codes["exact" if fits else "rounded again"] += 1
    if quantized is None:
        quantized = export.weights.quantize(layer.name, weight, made, export.plan.smoothing)
    return quantized, form.dequantize(quantized, group)


def _divided(layer: Layer, export: _Export) -> bool:
    """Return whether the plan divides the layer's input, which the checkpoint cannot."""
    smoothing = export.job.plan.smoothing
    return smoothing is not None and smoothing.input_divisor(layer.name) is not None


def _write_config(folder: Path, export: _Export) -> None:
    """Write config.json: the model's, and which layers are packed how."""
    stored = stored_once(export.job.checkpoint)
    matrices = [key.removesuffix(".weight") for key, tensor in stored.items() if len(tensor.shape) == 2]
    config = dict(export.job.checkpoint.config)
    if export.schemes:
        config |= export.packing.configure(export.job, export.schemes, matrices)
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
