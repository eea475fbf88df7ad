"""A plan as a folder in AutoRound's format."""

from collections.abc import Mapping
from typing import Any

from bitplan.runtimes.auto_round.config import auto_round_config
from bitplan.runtimes.auto_round.packing import packed, unpacked
from bitplan.runtimes.auto_round.schemes import NAME, layer_verdict, scheme_of
from bitplan.runtimes.packed.packing import Packing
from bitplan.runtimes.packed.write import write_job
from bitplan.runtimes.runtime import ExportJob

PACKING = Packing(NAME, layer_verdict, scheme_of, packed, unpacked, auto_round_config, fuses="all")


def write(job: ExportJob) -> Mapping[str, Any]:
    """Write the folder of a job, print what it holds of the plan, and return its report."""
    return write_job(PACKING, job)
