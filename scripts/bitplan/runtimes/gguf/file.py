"""Rewriting a full-precision GGUF under a plan: which type each tensor gets, and why, and the bytes by the runtime's quantizer."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
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

from bitplan.core.errors import user_error
from bitplan.core.files import check_gguf, write_aside
from bitplan.core.progress import progress
from bitplan.formats.base import Format
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.ggml import block_of, fallback
from bitplan.formats.table import IN_PLANS, PER_CHANNEL
from bitplan.models.families import merged_name
from bitplan.models.layers import ModelInfo
from bitplan.plans.fitting import SUBSTITUTE
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.rounding.gguf_codes import TensorCodes
from bitplan.runtimes.gguf.format_types import file_type, is_exact
from bitplan.runtimes.gguf.options import AS_THE_TABLE, PLAIN, LayerTypes, TensorContents
from bitplan.runtimes.gguf.tensor_data import TensorData, release_pages, row_pieces

HALF_LIMIT = 65504.0
# A matrix of latent attention that llama.cpp keeps as two 3-D tensors, one matrix a head: the part of the keys turned, that of the values not.
SPLIT = "attn_kv_b"
TURNED, STRAIGHT = "attn_k_b.weight", "attn_v_b.weight"
NOT_COPIED = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture"}
# llama.cpp computes with these in float32.
KEPT_AS_CONVERTED = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight")
FILE_TYPES = {
    "F32": "ALL_F32",
    "Q4_K": "MOSTLY_Q4_K_S",
    "Q5_K": "MOSTLY_Q5_K_S",
    "Q3_K": "MOSTLY_Q3_K_S",
    "MXFP4": "MOSTLY_MXFP4_MOE",
}


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the file: what the plan asked for, what was written, and why they differ ("" where they do not).

    A tensor that holds the experts of a projection stands for several `layers`; `extra_bytes` is what it costs that they all
    have the type of the most precise one. `packed`: the type holds the codes of the plan's own format.
    """

    tensor: str
    layer: str
    asked: str
    asked_activations: str
    written: str
    params: int
    bytes: int
    why: str
    layers: tuple[str, ...] = ()
    extra_bytes: int = 0
    packed: bool = False


def read_gguf(path: Path) -> GGUFReader:
    """Return the header and the mapped tensors of a GGUF file. Raises `UserError` when it is none, or is cut short."""
    check_gguf(path)
    try:
        reader = GGUFReader(path)
        architecture_names(reader)
    except (ValueError, KeyError, IndexError, OverflowError, StopIteration, AttributeError):
        # What gguf raises is about its arrays and says nothing of the file.
        what = "is truncated or not a GGUF file of a model"
        raise user_error("GGUF-INVALID", path, what, "Create it again with scripts/convert_gguf.py") from None
    return reader


def layer_names(reader: GGUFReader, info: ModelInfo) -> dict[str, tuple[str, ...]]:
    """Return {tensor name in the file: layers that it holds}; several only where experts are stored as one, in their order.

    Latent attention's `kv_b_proj` is held by two tensors.
    """
    names, held = architecture_names(reader), {tensor.name for tensor in reader.tensors}
    found: dict[str, tuple[str, ...]] = {}
    for layer in info.layers:
        tensor = f"{names.get_name(layer.name) or names.get_name(merged_name(layer.name))}.weight"
        for each in (tensor,) if tensor in held else parts_of(tensor, held):
            found[each] = (*found.get(each, ()), layer.name)
    return found


def parts_of(tensor: str, held: Container[str]) -> tuple[str, ...]:
    """Return the names of the two tensors in the place of one of latent attention; none where a file has no such two."""
    begin = tensor.removesuffix(f"{SPLIT}.weight")
    parts = (begin + TURNED, begin + STRAIGHT)
    return parts if begin != tensor and all(part in held for part in parts) else ()


def is_part(tensor: str) -> bool:
    """Return whether a tensor holds half of a layer, one matrix for each head."""
    return tensor.endswith((TURNED, STRAIGHT))


def architecture_names(reader: GGUFReader):
    """Return llama.cpp's map from checkpoint names to tensor names for the file's architecture."""
    architecture = str(reader.fields["general.architecture"].contents())
    kind = next(key for key, value in constants.MODEL_ARCH_NAMES.items() if value == architecture)
    return get_tensor_name_map(kind, int(reader.fields[f"{architecture}.block_count"].contents()))


def _largest(tensor: ReaderTensor) -> float:
    """Return the largest |x| of a tensor, widening some rows at a time."""
    return max(float(np.abs(dequantize(rows, tensor.tensor_type)).max()) for _, rows in row_pieces(tensor))


def sixteen_bit(tensor: ReaderTensor, wanted: GGMLQuantizationType) -> tuple[GGMLQuantizationType, str]:
    """Return the 16-bit type for an unquantized matrix, and why: F16 cannot hold values over 65504."""
    if wanted is not GGMLQuantizationType.F16:
        return wanted, "not quantized"
    if _largest(tensor) > HALF_LIMIT:
        return GGMLQuantizationType.BF16, "not quantized; values over 65504 do not fit F16"
    return wanted, "not quantized; bf16 is kept in 16 bits as F16"


def choose_type(
    tensor: ReaderTensor,
    made: LayerPlan,
    form: Format,
    protected: bool,
    unquantized: GGMLQuantizationType,
    given: str | None = None,
) -> tuple[GGMLQuantizationType, str]:
    """Return the type that a matrix is written in, and the reason where it is not simply what was asked for.

    `given` stands for the format in the place of the table's type.
    """
    noted = made.notes.get(SUBSTITUTE)
    if made.wq == UNQUANTIZED:
        kind, why = sixteen_bit(tensor, unquantized)
        why = "protected layer, kept in 16 bits" if protected and kind is unquantized else why
        return kind, f"{noted}; {why}" if noted else why
    asked = GGMLQuantizationType[given or file_type(form)]
    columns = int(tensor.shape[0])
    kind = fallback(asked, columns)
    reasons = [noted] if noted else []
    if made.wq == PER_CHANNEL:
        return kind, f"no type has a width per channel; {kind.name} is the smallest that holds the values"
    if not is_exact(form):
        reasons.append(f"{made.wq} is not a GGUF type, {asked.name} is the closest")
    if not is_exact(form) and form.group(made.group_size) != block_of(asked)[0]:
        reasons.append(f"blocks of {block_of(asked)[0]} values, not {form.group(made.group_size)}")
    if is_part(tensor.name):
        reasons.append("llama.cpp keeps the layer as two tensors, the keys' part turned")
    if kind is not asked:
        reasons.append(f"{columns} columns are no multiple of {asked.name}'s block of {block_of(asked)[0]}")
    return kind, "; ".join(reasons)


def _bytes_of(shape: Iterable[int], kind: GGMLQuantizationType) -> int:
    values, size = block_of(kind)
    return int(np.prod([int(n) for n in shape])) // values * size


def most_precise(asked: Sequence[LayerPlan], formats: Mapping[str, Format] = IN_PLANS) -> int:
    """Return the place of the plan with most bits per value: what a tensor that several layers share is written in."""
    bits = [formats[made.wq].bits_per_value(made.group_size) for made in asked]
    return bits.index(max(bits))


def _asked(plans: Sequence[LayerPlan], field: str) -> str:
    """Return what the layers of a tensor ask for: one name, or "mxfp4 x 3, mxfp8 x 1"."""
    counts = Counter(getattr(made, field) for made in plans)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name} x {n}" for name, n in sorted(counts.items()))


def _record(
    tensor: ReaderTensor,
    layers: tuple[str, ...],
    plans: Sequence[LayerPlan],
    choose: Callable[[int], tuple[GGMLQuantizationType, str]],
    formats: Mapping[str, Format],
) -> TensorRecord:
    """Return the record of a tensor that holds the matrices of some layers; `choose` takes the place of one of them."""
    place = most_precise(plans, formats)
    made, (kind, why) = plans[place], choose(place)
    reasons, size = [why] if why else [], _bytes_of(tensor.shape, kind)
    apart = sum(_bytes_of(tensor.shape, choose(other)[0]) for other in range(len(plans))) // len(plans)
    if len({each.wq for each in plans}) > 1:
        reasons.append(f"experts are stored as one tensor: {made.wq} is the most precise format asked for")
    inputs = sorted({each.aq for each in plans} - {UNQUANTIZED})
    if inputs:
        reasons.append(f"a GGUF cannot hold activation format {', '.join(inputs)}")
    name = merged_name(layers[0]) if len(layers) > 1 else layers[0]
    asked, params = (_asked(plans, "wq"), _asked(plans, "aq")), int(np.prod(tensor.shape))
    return TensorRecord(tensor.name, name, *asked, kind.name, params, size, "; ".join(reasons), layers, size - apart)


def plan_tensors(
    reader: GGUFReader,
    info: ModelInfo,
    plan: Plan,
    unquantized: str,
    formats: Mapping[str, Format] = IN_PLANS,
    instead: LayerTypes = AS_THE_TABLE,
) -> list[TensorRecord]:
    """Return a record for every tensor of the file, in the file's order: the report, before a byte is written.

    `instead` names for some layers the GGUF type that stands for their format, in the place of the table's.
    """
    names, protected = layer_names(reader, info), {layer.name for layer in info.layers if layer.protected}
    sixteen = GGMLQuantizationType[unquantized.upper()]
    records = []
    for tensor in reader.tensors:
        layers = names.get(tensor.name, ())
        if not layers or tensor.name.endswith(KEPT_AS_CONVERTED):
            shape = (int(np.prod(tensor.shape)), _bytes_of(tensor.shape, tensor.tensor_type))
            kept = (layers[0], UNQUANTIZED, UNQUANTIZED) if layers else ("", "", "")
            records.append(
                TensorRecord(tensor.name, *kept, tensor.tensor_type.name, *shape, "kept as converted", layers)
            )
            continue

        plans = [plan.of(layer) for layer in layers]

        def choose(place: int, tensor=tensor, layers=layers, plans=plans) -> tuple[GGMLQuantizationType, str]:
            """Return the type of one of the layers that the tensor holds, and why it is not the plan's; "" where it is."""
            made, layer = plans[place], layers[place]
            given = instead.types.get(layer)
            kind, why = choose_type(tensor, made, formats[made.wq], layer in protected, sixteen, given)
            if layer in instead.exact:
                return kind, ""
            return kind, "; ".join(filter(None, (why, instead.reasons.get(layer))))

        records.append(_record(tensor, layers, plans, choose, formats))
        release_pages(reader)
    return records


def file_type_of(records: Iterable[TensorRecord]) -> LlamaFileType:
    """Return the `general.file_type` that describes a mixed file: the one of the type that holds most bytes.

    Of K types that llama.cpp names by recipe alone it is the small one, which is mostly that type.
    """
    held: Counter[str] = Counter()
    for record in records:
        held[record.written] += record.bytes
    name = held.most_common(1)[0][0]
    return LlamaFileType[FILE_TYPES.get(name, f"MOSTLY_{name}")]


VALUE_TYPES = {str: GGUFValueType.STRING, float: GGUFValueType.FLOAT32, int: GGUFValueType.UINT32}


def _copy_fields(reader: GGUFReader, writer: GGUFWriter, replaced: Mapping[str, int | float | str]) -> None:
    for key, entry in reader.fields.items():
        if key in NOT_COPIED or key in replaced:
            continue
        kind = entry.types[0]
        writer.add_key_value(
            key, entry.contents(), kind, sub_type=entry.types[-1] if kind is GGUFValueType.ARRAY else None
        )
    for key, value in replaced.items():
        writer.add_key_value(key, value, VALUE_TYPES[type(value)])


def rewrite(
    base: Path,
    output: Path,
    records: list[TensorRecord],
    contents: TensorContents = PLAIN,
    threads: int = 1,
    keys: Mapping[str, int | float | str] = MappingProxyType({}),
) -> None:
    """Write `base` with each tensor in its record's type, and `keys` besides its own. Some rows of one tensor are in memory at a time.

    The file is read back: types, sizes and the values of `contents.codes` must be the records' and the plan's.
    """
    reader = GGUFReader(base)
    fields = {"general.quantization_version": constants.GGML_QUANT_VERSION}
    fields |= {"general.file_type": int(file_type_of(records)), **keys}
    with write_aside(output) as aside:
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
            columns = columns_of(tensor, record.layers, contents.importance)
            kind, factor = GGMLQuantizationType[record.written], contents.factors.get(tensor.name)
            held = contents.codes.get(tensor.name)
            packed = contents.packed.get(tensor.name)
            writer.write_tensor_data(TensorData(tensor, kind, record.bytes, columns, threads, factor, held, packed))
            release_pages(reader)
        writer.close()
        check_written(aside, records, output)
        _check_codes(aside, contents.codes)


def _check_codes(path: Path, codes: Mapping[str, TensorCodes]) -> None:
    """Raise AssertionError unless a file holds, bit for bit, the values that the rounded codes stand for."""
    for tensor in GGUFReader(path).tensors if codes else ():
        if tensor.name in codes:
            codes[tensor.name].check(tensor.data)


def columns_of(
    tensor: ReaderTensor, layers: Sequence[str], importance: Mapping[str, np.ndarray]
) -> list[np.ndarray | None]:
    """Return the importance of the columns of each matrix that a tensor holds; None where there is none.

    The heads of latent attention's values read the same inputs; the columns of its keys are no inputs of the layer.
    """
    if tensor.name.endswith(TURNED):
        return []
    heads = int(tensor.shape[2]) if tensor.name.endswith(STRAIGHT) else 1
    return [importance.get(layer) for layer in layers] * heads


def check_written(path: Path, records: Iterable[TensorRecord], shown: Path | None = None) -> None:
    """Read a file back. Raises `UserError` when a tensor's type or size is not the record's."""
    held = {tensor.name: (tensor.tensor_type.name, int(tensor.n_bytes)) for tensor in GGUFReader(path).tensors}
    wanted = {record.tensor: (record.written, record.bytes) for record in records}
    wrong = sorted(name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name))
    if wrong:
        name = wrong[0]
        raise user_error(
            "GGUF-OTHER-TYPE",
            shown or path,
            f"tensor {name} has type {held.get(name)}, but the report says {wanted.get(name)}",
            "Export it again",
        )


def _agreement(records: Iterable[TensorRecord], info: ModelInfo) -> dict[str, Any]:
    """Return how many tensors hold experts of unlike formats, and what making these agree cost."""
    mixed = [record for record in records if record.extra_bytes]
    extra = sum(record.extra_bytes for record in mixed)
    return {"tensors": len(mixed), "extra_bytes": extra, "extra_avg_bits": 8 * extra / info.parameters}


def _shown(record: TensorRecord) -> dict[str, Any]:
    """Return a record for the report, in which `layers` is a number: how many the tensor holds."""
    return {**asdict(record), "layers": len(record.layers)}


def report(records: list[TensorRecord], path: Path, info: ModelInfo) -> dict[str, Any]:
    """Return the content of report.json: every tensor, the file's size and its average bits over all parameters."""
    size = path.stat().st_size
    types = Counter(record.written for record in records)
    return {
        "file_bytes": size,
        "avg_bits_file": 8 * size / info.parameters,
        "parameters": info.parameters,
        "types": dict(types),
        "differences": sum(1 for record in records if record.why and record.layer),
        "experts_made_to_agree": _agreement(records, info),
        "tensors": [_shown(record) for record in records],
    }
