"""Which tensors of a GGUF file are written with the codes of a rounded plan, and what the report says of the others."""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from bitplan.formats.facts import TYPE_NAMES
from bitplan.formats.ggml import block_of
from bitplan.formats.table import IN_PLANS
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.plan import Plan
from bitplan.rounding.gguf_codes import TensorCodes, represents

if TYPE_CHECKING:
    from bitplan.runtimes.gguf.file import TensorRecord

UNUSED = "the plan's rounded codes are not stored: rounded to nearest"


def exact_layers(info: ModelInfo, plan: Plan, packed: Container[str] = frozenset()) -> frozenset[str]:
    """Return the rounded layers whose codes a GGUF type holds exactly: of the GGUF types themselves, and the `packed` ones.

    A layer whose input would have to be divided is none: its codes are for the divided input.
    """
    if plan.rounded is None:
        return frozenset()
    names = (layer.name for layer in info.quantizable if layer.name in plan.rounded)
    own = {layer.name for layer in info.quantizable if _fits(layer, plan)}
    return frozenset(name for name in names if (name in packed or name in own) and not _divided(name, plan))


def _divided(name: str, plan: Plan) -> bool:
    return plan.smoothing is not None and plan.smoothing.input_divisor(name) is not None


def _fits(layer: Layer, plan: Plan) -> bool:
    kind = TYPE_NAMES.get(plan.of(layer.name).wq)
    return kind is not None and layer.shape[1] % block_of(GGMLQuantizationType[kind])[0] == 0


def _held(record: "TensorRecord", plan: Plan, columns: Mapping[str, int]) -> bool:
    """Return whether a tensor's type represents the codes of all of its layers."""
    return all(
        represents(made.wq, IN_PLANS[made.wq].group(made.group_size), columns[name], record.written)
        for name, made in ((name, plan.of(name)) for name in record.layers)
    )


def _original(checkpoint: Checkpoint, info: ModelInfo) -> Callable[[str], Tensor]:
    layers = {layer.name: layer for layer in info.layers}

    def weight(name: str) -> Tensor:
        stored = checkpoint.read([f"{name}.weight"], torch.float32)[f"{name}.weight"]
        return stored.T if layers[name].transposed else stored

    return weight


def tensor_codes(
    records: Iterable["TensorRecord"], plan: Plan, exact: frozenset[str], checkpoint: Checkpoint, info: ModelInfo
) -> dict[str, TensorCodes]:
    """Return {tensor: codes} for the tensors whose layers are all in `exact` and of the type that is written."""
    original, columns = _original(checkpoint, info), {layer.name: layer.shape[1] for layer in info.layers}
    return {
        record.tensor: TensorCodes(record.tensor, record.layers, record.written, plan.rounded, original)
        for record in records
        if record.layers and exact.issuperset(record.layers) and _held(record, plan, columns)
    }


def _rounded_here(record: "TensorRecord", plan: Plan) -> bool:
    return plan.rounded is not None and any(name in plan.rounded for name in record.layers)


def with_unused(
    records: Iterable["TensorRecord"], plan: Plan, codes: Mapping[str, TensorCodes]
) -> list["TensorRecord"]:
    """Return the records, the reason of those completed whose layers are rounded and whose codes are not written."""
    return [
        replace(record, why="; ".join(filter(None, (record.why, UNUSED))))
        if _rounded_here(record, plan) and record.tensor not in codes
        else record
        for record in records
    ]


def rounded_report(
    records: Iterable["TensorRecord"], plan: Plan, codes: Mapping[str, TensorCodes]
) -> dict[str, Any] | None:
    """Return how many rounded layers the file has, and how many of them with the plan's own codes; None without any."""
    held = [record for record in records if _rounded_here(record, plan)]
    if not held:
        return None
    exact = sum(len(record.layers) for record in held if record.tensor in codes)
    return {"rounding": plan.rounded.rounding, "layers": sum(len(record.layers) for record in held), "exact": exact}
