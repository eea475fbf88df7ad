"""Write the configuration of the W4 + A4/A8 search as a GGUF file: W4 layers in q4_0, the rest in f16, smoothing folded in."""

import os
import time
from functools import partial
from pathlib import Path

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_base_kl_flag, add_model_id_flag, count, parser, run


def main(args) -> None:
    from bitplan.cli.inputs import clashes, refuse
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info, open_described_checkpoint
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.runtimes.gguf.base_check import base_checker
    from bitplan.runtimes.gguf.export import base_file, export_plan, print_report
    from bitplan.runtimes.gguf.metadata import name_of_plan, plan_keys

    started = time.monotonic()
    beside = args.output.with_suffix(".json")
    refuse(clashes([args.output, beside], [args.config], args.model))
    info = model_info(args.model)
    plan = read_any_plan(args.config, info)
    keys = plan_keys(plan, info, Path(info.path).resolve().name, name_of_plan(args.config))
    checkpoint = open_described_checkpoint(args.model, info)
    checker = partial(base_checker, checkpoint, args.threads, args.allow_base_kl)
    with base_file(None, checkpoint, args.output.parent, info, plan, checker) as base:
        report = export_plan(
            base, args.output, info, plan, "f16", {}, args.threads, args.match, keys=keys, checkpoint=checkpoint
        )
    write_json(beside, report)
    facts = {"model": str(args.model.resolve()), "model_fingerprint": info.fingerprint}
    write_provenance(args.output, started, **facts)
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
    add_base_kl_flag(flags)
    flags.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="processor threads")
    flags.add_argument(
        "--output", type=output_file, default=Path("models/qwen2.5-7b-mixed.gguf"), help="GGUF file to write"
    )
    run(flags, main)
