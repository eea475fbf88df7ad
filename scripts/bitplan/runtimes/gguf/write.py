"""An export of the workflow as a GGUF file."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from bitplan.runtimes.gguf.base_check import LIMIT, base_checker
from bitplan.runtimes.gguf.export import base_file, export_plan, print_report
from bitplan.runtimes.gguf.metadata import job_keys
from bitplan.runtimes.gguf.options import GGUFOptions
from bitplan.runtimes.runtime import ExportJob


def write_job(job: ExportJob) -> Mapping[str, Any]:
    """Write the GGUF of a job, print what it holds of the plan, and return its report.

    `job.settings` are `unquantized`, `match` and `max_error` (`GGUFOptions`). Without `job.base` the model is converted and checked first.
    """
    importance = {name: values.numpy() for name, values in job.importance.items()}
    options = GGUFOptions(**job.settings, importance=importance, keys=job_keys(job), threads=job.threads)
    limit = job.notes.get("allow_base_kl", LIMIT)
    checker = partial(base_checker, job.checkpoint, job.threads, limit)
    with base_file(job.base, job.checkpoint, job.output.parent, job.info, job.plan, checker) as base:
        report = export_plan(base, job.output, job.info, job.plan, options, job.checkpoint)
    print_report(job.output, report)
    return report
