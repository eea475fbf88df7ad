"""A plan as a checkpoint that transformers loads: each weight replaced by the value that its format holds.

The tensors are written one at a time, into files of the same names as the original's; what a plan leaves alone is copied byte by
byte. Formats whose values bfloat16 holds exactly keep a bfloat16 checkpoint's size; all others need float32.
"""

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bitplan.core.files import write_folder_aside, write_json
from bitplan.core.progress import progress
from bitplan.models.checkpoint import BYTES, FLOATS, Checkpoint, TensorInfo
from bitplan.models.checkpoint_files import INDEX
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import check_finite
from bitplan.plans.apply import QuantizedWeights, planned_weight
from bitplan.plans.apply_embeddings import quantize_stored_rows
from bitplan.plans.plan import Plan, check_columns
from bitplan.plans.smoothing import fold_norm

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
BFLOAT16_FAMILIES = ("mx",)  # at most 4 significant bits, and the exponents of bfloat16


def stored_dtypes(checkpoint: Checkpoint, info: ModelInfo, plan: Plan, weights: QuantizedWeights) -> dict[str, str]:
    """Return {tensor: safetensors dtype} for the tensors that the plan changes."""
    chosen = {}
    written = _kept(checkpoint)
    kept = {name for name, tensor in checkpoint.tensors.items() if tensor.key in written}
    held = [layer for layer in plan.embeddings(info) if f"{layer.name}.weight" in kept]
    for layer in (*info.quantizable, *held):
        form, name = weights.formats[plan.of(layer.name).wq], f"{layer.name}.weight"
        if plan.of(layer.name).weights_change:
            exact = form.family in BFLOAT16_FAMILIES and checkpoint.tensors[name].dtype == "BF16"
            chosen[name] = "BF16" if exact else "F32"
    return chosen | dict.fromkeys(_smoothed_tensors(checkpoint, plan), "F32")


def _smoothed_tensors(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """Return the tensors that smoothing changes: norms, and the matrices that read them or divide their own input."""
    if plan.smoothing is None:
        return []
    norms = (f"{norm}.{end}" for norm in plan.smoothing.by_norm for end in ("weight", "bias"))
    changed = {name for name, group in plan.smoothing.by_layer.items() if group.norm or plan.of(name).weights_change}
    return [name for name in (*norms, *(f"{name}.weight" for name in changed)) if name in checkpoint.tensors]


def _new_size(info: TensorInfo, dtype: str | None) -> int:
    return info.params * BYTES[dtype] if dtype else info.nbytes


def _header(tensors: Mapping[str, TensorInfo], dtypes: Mapping[str, str]) -> bytes:
    """Return length and JSON of a safetensors header, tensors in the given order, padded to 8 bytes."""
    entries, start = {"__metadata__": {"format": "pt"}}, 0
    for name, info in tensors.items():
        stop = start + _new_size(info, dtypes.get(name))
        entries[name] = {
            "dtype": dtypes.get(name, info.dtype),
            "shape": list(info.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _changed(
    name: str, checkpoint: Checkpoint, layer: Layer | None, plan: Plan, weights: QuantizedWeights
) -> Iterator[Tensor]:
    """Yield the values of a tensor under the plan, in the checkpoint's layout, float32: all at once, or some rows of an embedding."""
    if layer is not None and layer.is_embedding:
        yield from (rows for _, rows in quantize_stored_rows(checkpoint, name, layer, plan, weights))
    else:
        yield _changed_whole(name, checkpoint, layer, plan, weights)


def _changed_whole(
    name: str, checkpoint: Checkpoint, layer: Layer | None, plan: Plan, weights: QuantizedWeights
) -> Tensor:
    """Return the value of a tensor under the plan, in the checkpoint's layout, float32: a layer's weight, or part of a norm."""
    read = checkpoint.read([name], torch.float32)
    check_finite(read, checkpoint.folder)
    if layer is not None:
        stored = read[name].T if layer.transposed else read[name]
        made = _layer_value(stored, layer.name, plan, weights)
        return (made.T if layer.transposed else made).contiguous()
    norm, _, end = name.rpartition(".")
    group = plan.smoothing.by_norm[norm]
    return fold_norm(read[name], group if end == "weight" else replace(group, offset=0.0))


def _layer_value(weight: Tensor, layer: str, plan: Plan, weights: QuantizedWeights) -> Tensor:
    """Return a weight (out, in) smoothed, quantized, and divided again where its input would have to be divided."""
    smoothing = plan.smoothing
    factor = smoothing.factor(layer) if smoothing else None
    divisor = smoothing.input_divisor(layer) if smoothing else None
    wide = weight if factor is None else weight * factor
    value = planned_weight(layer, wide, plan, weights) if plan.of(layer).weights_change else wide
    return value if divisor is None else value / divisor


def _bytes(values: Tensor, dtype: str, name: str) -> memoryview:
    """Return values as a dtype's bytes. Raises AssertionError should the dtype not hold them exactly."""
    made = values.to(DTYPES[dtype])
    if not torch.equal(made.to(torch.float32), values):
        raise AssertionError(f"{name}: {dtype} does not hold the format's values")
    return memoryview(made.view(torch.uint8).numpy().reshape(-1))


def write_checkpoint(
    output: Path, checkpoint: Checkpoint, info: ModelInfo, plan: Plan, weights: QuantizedWeights
) -> dict[str, int]:
    """Write the checkpoint under a plan to the folder `output`. Returns how many tensors were changed, and the bytes written.

    What the model does not load is copied too, and all names stay as they are. One tensor is in memory at a time; a tied model
    stays tied. Raises `UserError` where a format does not fit its layer, or `output` is not free.
    """
    check_columns(plan, info, weights.formats)
    dtypes, held = stored_dtypes(checkpoint, info, plan, weights), _kept(checkpoint)
    layers = {f"{layer.name}.weight": layer for layer in info.layers}
    names = {tensor.key: name for name, tensor in checkpoint.tensors.items()}
    stored_as = {checkpoint.tensors[name].key: dtype for name, dtype in dtypes.items()}
    by_file: dict[Path, dict[str, TensorInfo]] = {}
    for key, tensor in held.items():
        by_file.setdefault(tensor.file, {})[key] = tensor
    with write_folder_aside(output) as aside:
        for file in checkpoint.others():
            shutil.copyfile(file, aside / file.name)
        for file, tensors in by_file.items():
            with open(aside / file.name, "wb") as write:
                write.write(_header(tensors, stored_as))
                for key, tensor in progress(tensors.items(), len(tensors), file.name):
                    if key in stored_as:
                        for values in _changed(names[key], checkpoint, layers.get(names[key]), plan, weights):
                            write.write(_bytes(values, stored_as[key], key))
                    else:
                        if key in names and tensor.dtype in FLOATS:
                            check_finite(checkpoint.read([names[key]]), checkpoint.folder)
                        tensor.copy_to(write)
        size = sum(_new_size(tensor, stored_as.get(key)) for key, tensor in held.items())
        _finish(aside, checkpoint, held, dtypes, size)
    return {"changed": len(dtypes), "bytes": size}


def _kept(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return what is written, by its name in the files: all that is stored, but a tied output matrix only as the embedding."""
    loading = checkpoint.loading
    twice = checkpoint.tied and loading.embedding is not None and loading.output is not None
    left_out = loading.names[loading.output] if twice else None
    return {key: tensor for key, tensor in checkpoint.stored.items() if key != left_out}


def _finish(
    folder: Path, checkpoint: Checkpoint, held: Mapping[str, TensorInfo], dtypes: Mapping[str, str], size: int
) -> None:
    """Write the dtype into the configuration, and sizes and names into the index, where there is one."""
    if "F32" in dtypes.values():
        config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"}
        text = json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    if (folder / INDEX).exists():
        names = {key: tensor.file.name for key, tensor in held.items()}
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": names})
