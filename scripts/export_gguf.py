"""Write a plan as a GGUF file, each tensor in the type that holds its format or comes nearest, and report every tensor."""

import time
from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_base_kl_flag, add_imatrix_flag, add_model_flag, add_threads_flag, parser, run
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import ExportSettings


def main(args) -> None:
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info, open_described_checkpoint
    from bitplan.plans.names import name_of_plan
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.runtimes.gguf.runtime import RUNTIME
    from bitplan.runtimes.runtime import ExportJob
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    info = model_info(args.model)
    plan = read_any_plan(args.plan, info)
    importance = read_importance(args.imatrix, info.quantizable)
    notes = {name: getattr(args, name) for name in ("scores", "calibration", "allow_base_kl")}
    notes["model_name"] = args.model_name or Path(info.path).resolve().name
    notes["plan_name"] = args.plan_name or name_of_plan(args.plan)
    settings = {name: getattr(args, name) for name in RUNTIME.settings}
    checkpoint = open_described_checkpoint(args.model, info)
    job = ExportJob(checkpoint, info, plan, args.output, importance, settings, args.base, notes, args.threads)
    report = RUNTIME.write(job)
    write_json(args.report, report)
    write_provenance(args.output, started)
    name = f"{notes['model_name']}-{notes['plan_name']}-{report['avg_bits_file']:.2f}bpw"
    print(RUNTIME.how_to_run(args.output, name))
    print(f"{report['differences']} layers are not as they were asked for; {args.report} says how and why")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument(
        "--plan", type=input_file, required=True, help="config.json, plan.json or mixed_precision_config.pt"
    )
    flags.add_argument("--base", type=input_file, help="the model as GGUF in full precision; converted when absent")
    add_settings_flags(flags, ExportSettings)
    add_imatrix_flag(flags)
    flags.add_argument("--model-name", help="name of the model in the file; the folder's by default")
    flags.add_argument("--plan-name", help="name of the plan in the file; by default that of its file or folder")
    flags.add_argument("--scores", type=input_file, help="the plan's perplexity.json, for the KL in the file")
    flags.add_argument("--calibration", type=input_file, help="the calibration text, for its SHA-256 in the file")
    add_base_kl_flag(flags)
    add_threads_flag(flags)
    flags.add_argument("--output", type=output_file, required=True, help="GGUF file to write")
    flags.add_argument("--report", type=output_file, required=True, help="report.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
