"""llama.cpp and what is built on it: a plan as one GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitplan.runtimes.runtime import ExportJob, Runtime, Verdict

if TYPE_CHECKING:
    from bitplan.evaluate.scores import TokenScores
    from bitplan.evaluate.timing import Run, SpeedSettings
    from bitplan.models.layers import Layer, ModelInfo
    from bitplan.plans.plan import LayerPlan
    from bitplan.reference.reference import Reference


def verdict(layer: "Layer", made: "LayerPlan", info: "ModelInfo") -> Verdict:
    """Return the type of the table for a layer's format, or llama.cpp's substitute where rows do not fit its blocks."""
    from bitplan.runtimes.gguf.verdicts import layer_verdict

    return layer_verdict(layer, made)


def write(job: ExportJob) -> Mapping[str, Any]:
    """Write the GGUF of a job, print what it holds of the plan, and return its report.

    `settings` are `unquantized`, `match` and `max_error` (`GGUFOptions`). Without `base` the model is converted and checked first.
    """
    from functools import partial

    from bitplan.runtimes.gguf.base_check import LIMIT, base_checker
    from bitplan.runtimes.gguf.export import base_file, export_plan, print_report
    from bitplan.runtimes.gguf.metadata import job_keys
    from bitplan.runtimes.gguf.options import GGUFOptions

    importance = {name: values.numpy() for name, values in job.importance.items()}
    options = GGUFOptions(**job.settings, importance=importance, keys=job_keys(job), threads=job.threads)
    limit = job.notes.get("allow_base_kl", LIMIT)
    checker = partial(base_checker, job.checkpoint, job.threads, limit)
    with base_file(job.base, job.checkpoint, job.output.parent, job.info, job.plan, checker) as base:
        report = export_plan(base, job.output, job.info, job.plan, options, job.checkpoint)
    print_report(job.output, report)
    return report


def how_to_run(artifact: Path) -> str:
    """Return the commands that serve a GGUF file."""
    return f"Run it: llama-server -m {artifact}\nor once: llama-cli -m {artifact} -p 'Once upon a time'"


def score(artifact: Path, reference: "Reference", threads: int) -> "TokenScores":
    """Return the scores of a GGUF file in llama.cpp. Raises `UserError` for a file of another model."""
    from bitplan.core.files import check_gguf
    from bitplan.runtimes.gguf.scores import score_gguf

    check_gguf(artifact)
    return score_gguf(artifact, reference, threads)


def time(artifact: Path, settings: "SpeedSettings") -> "Run":
    """Return the times of one run of a GGUF file in llama.cpp."""
    from bitplan.runtimes.gguf.timing import run_once

    return run_once(artifact, settings)


RUNTIME = Runtime(
    "gguf",
    "model.gguf",
    verdict,
    write,
    how_to_run,
    score,
    time,
    environment="llama",
    settings=("unquantized", "match", "max_error"),
    base="base.gguf",
)
