"""Write a plan as a GGUF file, each tensor in the type that holds its format or comes nearest, and report every tensor."""

import os
import time
from functools import partial
from pathlib import Path

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_base_kl_flag, add_model_flag, count, parser, positive, run


def main(args) -> None:
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info, open_described_checkpoint
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.runtimes.gguf.base_check import base_checker
    from bitplan.runtimes.gguf.export import base_file, export_plan, print_report
    from bitplan.runtimes.gguf.metadata import measured_kl, name_of_plan, plan_keys
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    info = model_info(args.model)
    plan = read_any_plan(args.plan, info)
    importance = {name: values.numpy() for name, values in read_importance(args.imatrix, info.quantizable).items()}
    names = (args.model_name or Path(info.path).resolve().name, args.plan_name or name_of_plan(args.plan))
    keys = plan_keys(plan, info, *names, measured_kl(args.scores), args.calibration)
    checkpoint = open_described_checkpoint(args.model, info)
    checker = partial(base_checker, checkpoint, args.threads, args.allow_base_kl)
    with base_file(args.base, checkpoint, args.output.parent, info, plan, checker) as base:
        how = (args.unquantized, importance, args.threads, args.match, args.max_error, keys, checkpoint)
        report = export_plan(base, args.output, info, plan, *how)
    write_json(args.report, report)
    write_provenance(args.output, started)
    print_report(args.output, report)
    print(f"{report['differences']} layers are not as they were asked for; {args.report} says how and why")


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument(
        "--plan", type=input_file, required=True, help="config.json, plan.json or mixed_precision_config.pt"
    )
    flags.add_argument("--base", type=input_file, help="the model as GGUF in full precision; converted when absent")
    flags.add_argument(
        "--unquantized", choices=("f16", "bf16"), default="f16", help="type of layers that the plan leaves at 16 bits"
    )
    flags.add_argument(
        "--match",
        choices=("bits", "distortion"),
        default="bits",
        help="how the type for a format that GGUF lacks is chosen",
    )
    flags.add_argument(
        "--max-error",
        type=positive,
        default=1e-3,
        help="squared error, as a share of the squares, that a type may make on weights with a width per channel",
    )
    flags.add_argument("--imatrix", type=input_file, help="importance matrix: the safetensors beside layer_stats.tsv")
    flags.add_argument("--model-name", help="name of the model in the file; the folder's by default")
    flags.add_argument("--plan-name", help="name of the plan in the file; by default that of its file or folder")
    flags.add_argument("--scores", type=input_file, help="the plan's perplexity.json, for the KL in the file")
    flags.add_argument("--calibration", type=input_file, help="the calibration text, for its SHA-256 in the file")
    add_base_kl_flag(flags)
    flags.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="processor threads")
    flags.add_argument("--output", type=output_file, required=True, help="GGUF file to write")
    flags.add_argument("--report", type=output_file, required=True, help="gguf.json to write")
    run(flags, main)
