"""A plan as a folder in the format of the compressed-tensors library."""

from collections.abc import Mapping, Sequence
from typing import Any

from bitplan.runtimes.compressed_tensors.config import quantization_config
from bitplan.runtimes.compressed_tensors.packing import packed, unpacked
from bitplan.runtimes.compressed_tensors.schemes import NAME, Scheme, layer_verdict, scheme_of
from bitplan.runtimes.compressed_tensors.shared_scales import with_shared_scales
from bitplan.runtimes.packed.packing import Packing
from bitplan.runtimes.packed.write import write_job
from bitplan.runtimes.runtime import ExportJob


def _configure(job: ExportJob, schemes: Mapping[str, Scheme], matrices: Sequence[str]) -> Mapping[str, Any]:
    whole = [name for name in matrices if name not in schemes and "embed" not in name.rpartition(".")[2]]
    return {"quantization_config": quantization_config(schemes, whole)}


PACKING = Packing(NAME, layer_verdict, scheme_of, packed, unpacked, _configure, fuses="all", share=with_shared_scales)


def write(job: ExportJob) -> Mapping[str, Any]:
    """Write the folder of a job, print what it holds of the plan, and return its report."""
    return write_job(PACKING, job)
