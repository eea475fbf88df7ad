"""Write a plan as a GGUF file, each tensor in the type that holds its format or comes nearest, and report every tensor."""

import os
import time
from pathlib import Path

from bitplan.command import add_model_flag, count, parser, run


def main(args) -> None:
    from bitplan.export.export import base_file, export_plan
    from bitplan.files import write_json
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.models.layers import model_info
    from bitplan.plan import read_plan
    from bitplan.provenance import write_provenance
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    info = model_info(args.model)
    plan = read_plan(args.plan, info)
    importance = {name: values.numpy() for name, values in read_importance(args.imatrix).items()}
    with base_file(args.base, Checkpoint.open(args.model), args.output.parent) as base:
        report = export_plan(base, args.output, info, plan, args.unquantized, importance, args.threads)
    write_json(args.report, report)
    write_provenance(args.output, started)
    print(f"{args.output}: {report['file_bytes']:,} bytes, {report['avg_bits_file']:.3f} bits per parameter")
    print(", ".join(f"{number} x {kind}" for kind, number in sorted(report["types"].items())))
    agreed = report["experts_made_to_agree"]
    if agreed["tensors"]:
        cost = f"{agreed['extra_bytes']:,} bytes, {agreed['extra_avg_bits']:.3f} bits per parameter"
        print(f"{agreed['tensors']} tensors hold experts of unlike formats; the most precise one for all costs {cost}")
    print(f"{report['differences']} layers differ from the plan; {args.report} says how and why")


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--plan", type=Path, required=True, help="config.json or plan.json")
    flags.add_argument("--base", type=Path, help="the model as GGUF in full precision; converted when absent")
    flags.add_argument(
        "--unquantized", choices=("f16", "bf16"), default="f16", help="type of layers that the plan leaves at 16 bits"
    )
    flags.add_argument("--imatrix", type=Path, help="importance matrix: the safetensors beside layer_stats.tsv")
    flags.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="processor threads")
    flags.add_argument("--output", type=Path, required=True, help="GGUF file to write")
    flags.add_argument("--report", type=Path, required=True, help="gguf.json to write")
    run(flags, main)
