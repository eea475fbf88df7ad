"""What a runtime that reads packed checkpoints says of itself to the writer."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitplan.formats.base import Quantized
from bitplan.plans.plan import LayerPlan
from bitplan.runtimes.fusion import Fuses, Judge
from bitplan.runtimes.packed.shards import Content
from bitplan.runtimes.runtime import ExportJob

Contents = Iterable[tuple[str, Content]]


def as_it_is(contents: Contents) -> Contents:
    """Return the tensors of a block unchanged."""
    return contents


def as_they_are(contents: Mapping[str, Content], groups: Iterable[Sequence[str]]) -> dict[str, Content]:
    """Return the tensors of a block unchanged, whatever layers are stored as one."""
    return dict(contents)


@dataclass(frozen=True)
class Packing:
    """How a runtime stores layers.

    `scheme_of` names how a layer's format is stored, None for one that stays at 16 bits. `pack` returns a layer's tensors by the end of
    their names, `unpack` the weight (out, in) float32 that the runtime computes with. `configure(job, schemes by layer, all stored
    matrices)` returns what config.json has beside the model's own. `arrange` may rename or stack the tensors of a block. `fuses` says
    which layers are stored as one, and `share` gives these (by their stored names) what they have to have in common.
    """

    runtime: str
    judge: Judge
    scheme_of: Callable[[LayerPlan], Hashable]
    pack: Callable[[Quantized, Any], dict[str, Tensor]]
    unpack: Callable[[Mapping[str, Tensor], Any], Tensor]
    configure: Callable[[ExportJob, Mapping[str, Any], Sequence[str]], Mapping[str, Any]]
    arrange: Callable[[Contents], Contents] = as_it_is
    fuses: Fuses = ""
    share: Callable[[Mapping[str, Content], Iterable[Sequence[str]]], dict[str, Content]] = as_they_are


def pack_layer(
    packing: Packing, name: str, quantized: Quantized, scheme: Hashable, wanted: Tensor
) -> dict[str, Tensor]:
    """Return a layer's tensors by the end of their names. Raises AssertionError as `check_unpacked` does."""
    tensors = packing.pack(quantized, scheme)
    check_unpacked(packing, name, tensors, scheme, wanted)
    return tensors


def check_unpacked(
    packing: Packing, name: str, tensors: Mapping[str, Tensor], scheme: Hashable, wanted: Tensor
) -> None:
    """Raise AssertionError unless the tensors unpack to the very values that the plan has, (out, in) float32."""
    if not torch.equal(packing.unpack(tensors, scheme), wanted):
        raise AssertionError(f"{name}: what {packing.runtime} unpacks is not the plan's values")


def named(base: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Content]]:
    """Yield the tensors of a layer by their whole names."""
    yield from ((f"{base}.{end}", each) for end, each in tensors.items())
