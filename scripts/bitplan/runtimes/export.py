"""What the commands that export a plan do, once their flags are read."""

import os
import re
import shlex
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitplan.core.files import digest_of_files, write_json
from bitplan.core.provenance import versions, write_provenance
from bitplan.models.layers import model_info, open_described_checkpoint
from bitplan.plans.names import name_of_plan
from bitplan.plans.plan import check_plan_importance
from bitplan.plans.torch_config import read_any_plan
from bitplan.runtimes.card.card import make_card, read_scores, write_card
from bitplan.runtimes.runtime import ExportJob, Runtime
from bitplan.runtimes.verdicts import refuse_unheld
from bitplan.statistics.importance import read_importance

NOTES = ("scores", "calibration", "allow_base_kl")


def export(runtime: Runtime, args: Namespace) -> Mapping[str, Any]:
    """Write a plan for a runtime, with a report beside it where one is wanted, print how to run it, and return the report.

    `args` are the flags of `cli.parser.add_export_flags`. Raises `UserError` for a layer that the runtime cannot hold, before anything is written.
    """
    started, info = time.monotonic(), model_info(args.model)
    scores = read_scores(args.scores) if args.card else None
    plan = read_any_plan(args.plan, info)
    refuse_unheld(runtime, plan, info)
    importance = read_importance(args.imatrix, info.quantizable)
    check_plan_importance(plan, info, importance)
    names = (args.model_name or Path(info.path).resolve().name, args.plan_name or name_of_plan(args.plan))
    notes = {**{key: getattr(args, key) for key in NOTES}, **dict(zip(("model_name", "plan_name"), names, strict=True))}
    settings = {name: getattr(args, name) for name in runtime.settings}
    checkpoint = open_described_checkpoint(args.model, info)
    job = ExportJob(checkpoint, info, plan, args.output, importance, settings, args.base, notes, args.threads)
    report = {"runtime": runtime.name, "model": names[0], "plan": names[1], **runtime.write(job)}
    if runtime.is_folder:
        report["sha256"] = digest_of_files(sorted(path for path in args.output.rglob("*") if path.is_file()))
    name = suggested_name(names, report)
    text = runtime.how_to_run(args.output, name)
    report |= _for_the_card(runtime, job, text, name)
    if args.report:
        write_json(args.report, report)
    if args.card:
        write_card(args.card, make_card(info, (args.plan, plan), report, scores, args.calibration))
    write_provenance(args.output, started)
    print(text)
    return report


def suggested_name(names: tuple[str, str], report: Mapping[str, Any]) -> str:
    """Return what a file is called where names say what is inside: `{model}-{plan}-{bits}bpw`, without spaces and the like: a registry
    of models takes it as it is."""
    bits = f"-{report['avg_bits_file']:.2f}bpw" if "avg_bits_file" in report else ""
    return re.sub(r"[^\w.]+", "-", f"{'-'.join(names)}{bits}")


def _for_the_card(runtime: Runtime, job: ExportJob, text: str, name: str) -> dict[str, Any]:
    """Return what a model card says of an export besides its figures: no path of this machine is in it."""
    flags = {"runtime": runtime.name, **job.settings, "imatrix": "layer_stats.safetensors" if job.importance else None}
    words = [
        f"--{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in flags.items() if value is not None
    ]
    outputs = f"--output {runtime.artifact} --report report.json"
    return {
        "name": name,
        "how_to_run": text.replace(f"{job.output.parent}{os.sep}", ""),
        "command": f"python scripts/export_plan.py --model MODEL --plan plan.json {' '.join(words)} {outputs}",
        "versions": {package: version for package, version in versions().items() if version},
    }
