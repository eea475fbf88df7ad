"""Rewriting a full-precision GGUF under a plan: which type each tensor gets, and why, and the bytes by the runtime's quantizer."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    ReaderTensor,
    constants,
    dequantize,
    get_tensor_name_map,
)

from bitplan.errors import user_error
from bitplan.files import written_aside
from bitplan.formats.base import Format
from bitplan.formats.ggml import block_of, encode, fallback
from bitplan.formats.table import FORMATS, UNQUANTIZED
from bitplan.models.layers import ModelInfo
from bitplan.plan import LayerPlan, Plan
from bitplan.progress import progress

HALF_LIMIT = 65504.0
ROWS_VALUES = 1 << 24
NOT_COPIED = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture"}
# llama.cpp computes with these in float32.
KEPT_AS_CONVERTED = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight")
FILE_TYPES = {
    "F32": "ALL_F32",
    "Q4_K": "MOSTLY_Q4_K_M",
    "Q5_K": "MOSTLY_Q5_K_M",
    "Q3_K": "MOSTLY_Q3_K_M",
    "MXFP4": "MOSTLY_MXFP4_MOE",
}


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the file: what the plan asked for, what was written, and why they differ ("" where they do not)."""

    tensor: str
    layer: str
    asked: str
    asked_activations: str
    written: str
    params: int
    bytes: int
    why: str


def layer_names(reader: GGUFReader, info: ModelInfo) -> dict[str, str]:
    """Return {tensor name in the file: layer name} for every layer of the model that the file holds."""
    names = architecture_names(reader)
    found = {f"{mapped}.weight": layer.name for layer in info.layers if (mapped := names.get_name(layer.name))}
    held = {tensor.name for tensor in reader.tensors}
    return {tensor: layer for tensor, layer in found.items() if tensor in held}


def architecture_names(reader: GGUFReader):
    """Return llama.cpp's map from checkpoint names to tensor names for the file's architecture."""
    architecture = str(reader.fields["general.architecture"].contents())
    kind = next(key for key, value in constants.MODEL_ARCH_NAMES.items() if value == architecture)
    return get_tensor_name_map(kind, int(reader.fields[f"{architecture}.block_count"].contents()))


def _largest(tensor: ReaderTensor) -> float:
    """Return the largest |x| of a tensor, widening some rows at a time."""
    step = max(1, ROWS_VALUES // int(tensor.shape[0]))
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    parts = (dequantize(rows[i : i + step], tensor.tensor_type) for i in range(0, len(rows), step))
    return max(float(np.abs(part).max()) for part in parts)


def _sixteen_bit(tensor: ReaderTensor, wanted: GGMLQuantizationType) -> tuple[GGMLQuantizationType, str]:
    """Return the 16-bit type for an unquantized matrix, and why: F16 cannot hold values over 65504."""
    if wanted is not GGMLQuantizationType.F16:
        return wanted, "not quantized"
    if _largest(tensor) > HALF_LIMIT:
        return GGMLQuantizationType.BF16, "not quantized; values over 65504 do not fit F16"
    return wanted, "not quantized; bf16 is kept in 16 bits as F16"


def choose_type(
    tensor: ReaderTensor, made: LayerPlan, form: Format, protected: bool, unquantized: GGMLQuantizationType
) -> tuple[GGMLQuantizationType, str]:
    """Return the type that a matrix is written in, and the reason where it is not simply what was asked for."""
    if made.wq == UNQUANTIZED:
        kind, why = _sixteen_bit(tensor, unquantized)
        return kind, "protected layer, kept in 16 bits" if protected and kind is unquantized else why
    asked = GGMLQuantizationType[form.gguf_type]
    columns = int(tensor.shape[0])
    kind = fallback(asked, columns)
    reasons = []
    if asked is GGMLQuantizationType.MXFP4 and made.wq == "mxfp4":
        reasons.append("exact ties are rounded towards zero, not to even")
    elif not form.exact_in_gguf:
        reasons.append(f"{made.wq} is no GGUF type, {asked.name} comes nearest")
    if not form.exact_in_gguf and form.group(made.group_size) != block_of(asked)[0]:
        reasons.append(f"blocks of {block_of(asked)[0]} values, not {form.group(made.group_size)}")
    if kind is not asked:
        reasons.append(f"{columns} columns are no multiple of {asked.name}'s block of {block_of(asked)[0]}")
    return kind, "; ".join(reasons)


def _bytes_of(shape: Iterable[int], kind: GGMLQuantizationType) -> int:
    values, size = block_of(kind)
    return int(np.prod([int(n) for n in shape])) // values * size


def plan_tensors(
    reader: GGUFReader, info: ModelInfo, plan: Plan, unquantized: str, formats: Mapping[str, Format] = FORMATS
) -> list[TensorRecord]:
    """Return a record for every tensor of the file, in the file's order: the report, before a byte is written."""
    names, protected = layer_names(reader, info), {layer.name for layer in info.layers if layer.protected}
    records = []
    for tensor in reader.tensors:
        layer = names.get(tensor.name, "")
        made = plan.of(layer)
        kind, why = tensor.tensor_type, "kept as converted"
        if layer and not tensor.name.endswith(KEPT_AS_CONVERTED):
            kind, why = choose_type(
                tensor, made, formats[made.wq], layer in protected, GGMLQuantizationType[unquantized.upper()]
            )
        if made.aq != UNQUANTIZED:
            why = "; ".join(filter(None, (why, f"a GGUF cannot hold activation format {made.aq}")))
        params, size = int(np.prod(tensor.shape)), _bytes_of(tensor.shape, kind)
        records.append(
            TensorRecord(
                tensor.name, layer, made.wq if layer else "", made.aq if layer else "", kind.name, params, size, why
            )
        )
    return records


def file_type_of(records: Iterable[TensorRecord]) -> LlamaFileType:
    """Return the `general.file_type` that describes a mixed file: the one of the type that holds most parameters."""
    held: Counter[str] = Counter()
    for record in records:
        held[record.written] += record.params
    name = held.most_common(1)[0][0]
    return LlamaFileType[FILE_TYPES.get(name, f"MOSTLY_{name}")]


def _copy_fields(reader: GGUFReader, writer: GGUFWriter, replaced: Mapping[str, int]) -> None:
    for key, entry in reader.fields.items():
        if key in NOT_COPIED or key in replaced:
            continue
        kind = entry.types[0]
        writer.add_key_value(
            key, entry.contents(), kind, sub_type=entry.types[-1] if kind is GGUFValueType.ARRAY else None
        )
    for key, value in replaced.items():
        writer.add_key_value(key, value, GGUFValueType.UINT32)


def _data(tensor: ReaderTensor, kind: GGMLQuantizationType, importance: np.ndarray | None, threads: int) -> np.ndarray:
    """Return a tensor's bytes in a type; the matrices of a 3-D tensor (experts) are quantized one by one."""
    if kind is tensor.tensor_type:
        return tensor.data
    values = dequantize(tensor.data, tensor.tensor_type)
    if kind is GGMLQuantizationType.F16:
        return values.astype(np.float16)
    if kind is GGMLQuantizationType.F32:
        return values
    if kind is GGMLQuantizationType.BF16:
        from gguf import quantize

        return quantize(values, kind)
    if values.ndim == 3:
        return np.stack([encode(matrix, kind, importance, threads) for matrix in values])
    return encode(values, kind, importance, threads)


def rewrite(
    base: Path,
    output: Path,
    records: list[TensorRecord],
    importance: Mapping[str, np.ndarray],
    threads: int,
    file_type: int | None = None,
) -> None:
    """Write `base` with each tensor in its record's type. One tensor is in memory at a time.

    `importance` maps layers to mean x^2 per column. The file is read back: types and sizes must be the records'.
    """
    reader = GGUFReader(base)
    fields = {"general.quantization_version": constants.GGML_QUANT_VERSION}
    fields["general.file_type"] = int(file_type_of(records)) if file_type is None else file_type
    with written_aside(output) as aside:
        writer = GGUFWriter(aside, str(reader.fields["general.architecture"].contents()))
        writer.data_alignment = int(reader.alignment or GGUF_DEFAULT_ALIGNMENT)
        _copy_fields(reader, writer, fields)
        for tensor, record in zip(reader.tensors, records, strict=True):
            shape = [int(n) for n in reversed(tensor.shape)]
            writer.add_tensor_info(
                tensor.name, shape, np.dtype(np.float32), record.bytes, GGMLQuantizationType[record.written]
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, record in progress(zip(reader.tensors, records, strict=True), len(records), "tensors"):
            data = _data(tensor, GGMLQuantizationType[record.written], importance.get(record.layer), threads)
            writer.write_tensor_data(np.ascontiguousarray(data))
        writer.close()
        check_written(aside, records, output)


def check_written(path: Path, records: Iterable[TensorRecord], shown: Path | None = None) -> None:
    """Read a file back. Raises `UserError` when a tensor's type or size is not the record's."""
    held = {tensor.name: (tensor.tensor_type.name, int(tensor.n_bytes)) for tensor in GGUFReader(path).tensors}
    wanted = {record.tensor: (record.written, record.bytes) for record in records}
    wrong = sorted(name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name))
    if wrong:
        name = wrong[0]
        raise user_error(
            shown or path, f"tensor {name} is {held.get(name)}, the report says {wanted.get(name)}", "Export it again"
        )


def report(records: list[TensorRecord], path: Path, info: ModelInfo) -> dict[str, Any]:
    """Return the content of gguf.json: every tensor, the file's size and its average bits over all parameters."""
    size = path.stat().st_size
    types = Counter(record.written for record in records)
    return {
        "file_bytes": size,
        "avg_bits_file": 8 * size / info.parameters,
        "parameters": info.parameters,
        "types": dict(types),
        "differences": sum(1 for record in records if record.why and record.layer),
        "tensors": [asdict(record) for record in records],
    }
