"""Which tensors of a GGUF file are written with the codes of a plan's own formats, because a type holds them."""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor, dequantize

from bitplan.formats.base import Quantized
from bitplan.formats.table import IN_PLANS
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.rounding.gguf_holders import PACKINGS, scales_vary, why_not_packed
from bitplan.rounding.gguf_packing import scales_fit
from bitplan.runtimes.gguf.file import is_part, layer_names, most_precise
from bitplan.runtimes.gguf.format_types import FILE_TYPES
from bitplan.runtimes.gguf.options import LayerTypes
from bitplan.runtimes.gguf.tensor_data import release_pages, row_pieces

if TYPE_CHECKING:
    from bitplan.runtimes.gguf.file import TensorRecord

NO_SCALE = "a scale is no float16 number"
TURNED = "the columns of a turned matrix are not those of its groups"


def packed_types(
    reader: GGUFReader, info: ModelInfo, plan: Plan, match: str, factors: Mapping[str, np.ndarray]
) -> LayerTypes:
    """Return the types of the layers whose codes a type holds, and why of others of these formats it does not.

    With `match` "bits" only those count whose type is the table's. `factors` are those of the tensors' columns.
    """
    types, reasons, held = {}, {}, layer_names(reader, info)
    for tensor in reader.tensors:
        for place, layer in enumerate(held.get(tensor.name, ())):
            made = plan.of(layer)
            if made.wq not in PACKINGS or (match == "bits" and PACKINGS[made.wq].kind != FILE_TYPES[made.wq]):
                continue
            why = _why_not(tensor, place, made, _rounded(layer, plan), factors.get(tensor.name))
            if why:
                reasons[layer] = why
            else:
                types[layer] = PACKINGS[made.wq].kind
        release_pages(reader)
    return LayerTypes(types, frozenset(types), reasons)


def packed_plans(
    records: Iterable["TensorRecord"], plan: Plan, types: Mapping[str, str], written: Container[str]
) -> dict[str, LayerPlan]:
    """Return {tensor: the plan whose format it is quantized in} for tensors whose type holds these codes; `written` have theirs already."""
    found = {}
    for record in records:
        if not record.layers or record.tensor in written:
            continue
        layer = record.layers[most_precise([plan.of(name) for name in record.layers])]
        if types.get(layer) == record.written:
            found[record.tensor] = plan.of(layer)
    return found


def with_packed(records: Iterable["TensorRecord"], tensors: Container[str]) -> list["TensorRecord"]:
    """Return the records, those of `tensors` marked as having the codes of the plan's own format."""
    return [replace(record, packed=True) if record.tensor in tensors else record for record in records]


def packed_report(records: Iterable["TensorRecord"], plan: Plan) -> dict[str, Any] | None:
    """Return how many tensors hold codes of the plan's formats, and the bytes over what the formats take; None without any."""
    held = [record for record in records if record.packed]
    if not held:
        return None
    made = {name: plan.of(name) for record in held for name in record.layers}
    bits = {name: IN_PLANS[each.wq].bits_per_value(each.group_size) for name, each in made.items()}
    asked = sum(bits[name] * record.params / len(record.layers) for record in held for name in record.layers) / 8
    return {"tensors": len(held), "extra_bytes": round(sum(record.bytes for record in held) - asked)}


def _rounded(layer: str, plan: Plan) -> Quantized | None:
    return plan.rounded.layer(layer).quantized if plan.rounded is not None and layer in plan.rounded else None


def _why_not(
    tensor: ReaderTensor, place: int, made: LayerPlan, rounded: Quantized | None, factor: np.ndarray | None
) -> str:
    """Return why a tensor's type cannot hold the codes of one of its layers; "" where it can."""
    form = IN_PLANS[made.wq]
    group = form.group(made.group_size)
    if is_part(tensor.name):
        return TURNED
    if why := why_not_packed(made.wq, group, int(tensor.shape[0])):
        return why
    if not scales_vary(made.wq):
        return ""
    parts = [rounded] if rounded is not None else _quantized(tensor, place, made, factor)
    return "" if all(scales_fit(part, made.wq) for part in parts) else NO_SCALE


def _quantized(tensor: ReaderTensor, place: int, made: LayerPlan, factor: np.ndarray | None) -> Iterator[Quantized]:
    """Yield one of a tensor's matrices in a format, some rows at a time."""
    form = IN_PLANS[made.wq]
    for number, rows in row_pieces(tensor):
        if number == place:
            values = dequantize(rows, tensor.tensor_type) * (np.float32(1) if factor is None else factor)
            yield form.quantize(torch.from_numpy(np.ascontiguousarray(values)), form.group(made.group_size), None)
