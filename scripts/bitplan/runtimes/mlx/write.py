"""A plan as a folder that mlx-lm loads."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bitplan.models.checkpoint import TensorInfo
from bitplan.runtimes.mlx.config import mlx_config
from bitplan.runtimes.mlx.names import stacked_name
from bitplan.runtimes.mlx.packing import packed, unpacked
from bitplan.runtimes.mlx.schemes import NAME, layer_verdict, scheme_of
from bitplan.runtimes.packed.packing import Contents, Packing
from bitplan.runtimes.packed.shards import Content, tensor_of
from bitplan.runtimes.packed.write import write_job
from bitplan.runtimes.runtime import ExportJob


def with_stacked_experts(contents: Contents) -> Iterator[tuple[str, Content]]:
    """Yield the tensors of a block, those of experts as one tensor (experts, out, ...) for each projection."""
    stacks: dict[str, list[Content]] = {}
    for name, content in contents:
        stacked = stacked_name(name)
        if stacked is None:
            yield name, content
        else:
            stacks.setdefault(stacked, []).append((_number(name), content))
    for name, experts in stacks.items():
        yield name, torch.stack([_alike(content) for _, content in sorted(experts, key=lambda each: each[0])])


def _number(name: str) -> int:
    """Return the number of the expert that a tensor belongs to."""
    return int(name.rpartition(".experts.")[2].partition(".")[0])


def _alike(content: Content) -> Tensor:
    """Return a tensor of an expert, read where it is the checkpoint's."""
    return tensor_of(content) if isinstance(content, TensorInfo) else content


PACKING = Packing(NAME, layer_verdict, scheme_of, packed, unpacked, mlx_config, with_stacked_experts, "experts")


def write(job: ExportJob) -> Mapping[str, Any]:
    """Write the folder of a job, print what it holds of the plan, and return its report."""
    return write_job(PACKING, job)
