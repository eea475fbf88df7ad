"""Write a plan in the file format of a runtime (gguf ...), and report what it holds of every layer."""

import time
from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import any_path, input_file, output_file, output_path
from bitplan.cli.parser import add_base_kl_flag, add_model_flag, add_threads_flag, parser, run
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import ExportSettings


def main(args) -> None:
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info, open_described_checkpoint
    from bitplan.plans.names import name_of_plan
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.runtimes.registry import runtime_named
    from bitplan.runtimes.runtime import ExportJob
    from bitplan.runtimes.verdicts import refuse_unheld
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    runtime = runtime_named(args.runtime)
    info = model_info(args.model)
    plan = read_any_plan(args.plan, info)
    refuse_unheld(runtime, plan, info)
    notes = {
        "model_name": args.model_name or Path(info.path).resolve().name,
        "plan_name": args.plan_name or name_of_plan(args.plan),
        "calibration": args.calibration,
        "allow_base_kl": args.allow_base_kl,
    }
    settings = {name: getattr(args, name) for name in runtime.settings}
    importance = read_importance(args.imatrix, info.quantizable)
    checkpoint = open_described_checkpoint(args.model, info)
    job = ExportJob(checkpoint, info, plan, args.output, importance, settings, args.base, notes, args.threads)
    report = runtime.write(job)
    write_json(args.report, {"runtime": runtime.name, **report})
    write_provenance(args.output, started)
    bits = f"-{report['avg_bits_file']:.2f}bpw" if "avg_bits_file" in report else ""
    print(runtime.how_to_run(args.output, f"{notes['model_name']}-{notes['plan_name']}{bits}"))


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--runtime", required=True, help="name of the runtime, e.g. gguf")
    flags.add_argument(
        "--plan", type=input_file, required=True, help="config.json, plan.json or mixed_precision_config.pt"
    )
    flags.add_argument("--base", type=any_path, help="what the runtime starts from: gguf: the model in full precision")
    add_settings_flags(flags, ExportSettings)
    flags.add_argument("--imatrix", type=input_file, help="importance matrix: the safetensors beside layer_stats.tsv")
    flags.add_argument("--model-name", help="name of the model in the file; the folder's by default")
    flags.add_argument("--plan-name", help="name of the plan in the file; by default that of its file or folder")
    flags.add_argument("--calibration", type=input_file, help="the calibration text, for its SHA-256 in the file")
    add_base_kl_flag(flags)
    add_threads_flag(flags)
    flags.add_argument("--output", type=output_path, required=True, help="file or folder to write")
    flags.add_argument("--report", type=output_file, required=True, help="report.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
