"""What the commands that export a plan do, once their flags are read."""

import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitplan.core.files import digest_of_files, write_json
from bitplan.core.provenance import write_provenance
from bitplan.models.layers import model_info, open_described_checkpoint
from bitplan.plans.names import name_of_plan
from bitplan.plans.torch_config import read_any_plan
from bitplan.runtimes.runtime import ExportJob, Runtime
from bitplan.runtimes.verdicts import refuse_unheld
from bitplan.statistics.importance import read_importance

NOTES = ("scores", "calibration", "allow_base_kl")


def export(runtime: Runtime, args: Namespace) -> Mapping[str, Any]:
    """Write a plan for a runtime with a report beside it, print how to run it, and return the report.

    `args` are the flags of `cli.parser.add_export_flags`. Raises `UserError` for a layer that the runtime cannot hold, before anything is written.
    """
    started, info = time.monotonic(), model_info(args.model)
    plan = read_any_plan(args.plan, info)
    refuse_unheld(runtime, plan, info)
    names = (args.model_name or Path(info.path).resolve().name, args.plan_name or name_of_plan(args.plan))
    notes = {**{key: getattr(args, key) for key in NOTES}, **dict(zip(("model_name", "plan_name"), names, strict=True))}
    settings = {name: getattr(args, name) for name in runtime.settings}
    importance = read_importance(args.imatrix, info.quantizable)
    checkpoint = open_described_checkpoint(args.model, info)
    job = ExportJob(checkpoint, info, plan, args.output, importance, settings, args.base, notes, args.threads)
    report = {"runtime": runtime.name, **runtime.write(job)}
    if runtime.is_folder:
        report["sha256"] = digest_of_files(sorted(path for path in args.output.rglob("*") if path.is_file()))
    write_json(args.report, report)
    write_provenance(args.output, started)
    bits = f"-{report['avg_bits_file']:.2f}bpw" if "avg_bits_file" in report else ""
    print(runtime.how_to_run(args.output, f"{'-'.join(names)}{bits}"))
    return report
