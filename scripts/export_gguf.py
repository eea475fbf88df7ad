"""Write a plan as a GGUF file, each tensor in the type that holds its format or comes nearest, and report every tensor."""

import os
import time
from pathlib import Path

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_base_kl_flag, add_model_flag, count, parser, positive, run


def main(args) -> None:
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import described_checkpoint, model_info
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
    checkpoint = described_checkpoint(args.model, info)
    job = ExportJob(checkpoint, info, plan, args.output, importance, settings, args.base, notes, args.threads)
    report = RUNTIME.write(job)
    write_json(args.report, report)
    write_provenance(args.output, started)
    name = f"{notes['model_name']}-{notes['plan_name']}-{report['avg_bits_file']:.2f}bpw"
    print(RUNTIME.how_to_run(args.output, name))
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
    flags.add_argument("--report", type=output_file, required=True, help="report.json to write")
    run(flags, main)
