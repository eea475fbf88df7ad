"""Write the configuration of the W4 + A4/A8 search as a GGUF file: W4 layers in q4_0, the rest in f16, smoothing folded in."""

import os
import time
from pathlib import Path

from bitplan.command import add_model_id_flag, count, parser, run
from bitplan.flag_files import input_file, output_file


def main(args) -> None:
    from bitplan.export.export import base_file, export_plan, print_report
    from bitplan.files import write_json
    from bitplan.flag_files import clashes, refuse
    from bitplan.models.layers import described_checkpoint, model_info
    from bitplan.provenance import write_provenance
    from bitplan.torch_config import read_any_plan

    started = time.monotonic()
    beside = args.output.with_suffix(".json")
    refuse(clashes([args.output, beside], [args.config], args.model))
    info = model_info(args.model)
    plan = read_any_plan(args.config, info)
    checkpoint = described_checkpoint(args.model, info)
    with base_file(None, checkpoint, args.output.parent, info, plan) as base:
        report = export_plan(base, args.output, info, plan, "f16", {}, args.threads, args.match, checkpoint=checkpoint)
    write_json(beside, report)
    write_provenance(args.output, started)
    print_report(args.output, report)


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_id_flag(flags)
    flags.add_argument(
        "--config", type=input_file, default=Path("mixed_precision_config.pt"), help="the search's configuration"
    )
    flags.add_argument(
        "--match", choices=("bits", "distortion"), default="bits", help="q4_0 for W4, or the type of nearest distortion"
    )
    flags.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="processor threads")
    flags.add_argument(
        "--output", type=output_file, default=Path("models/qwen2.5-7b-mixed.gguf"), help="GGUF file to write"
    )
    run(flags, main)
