"""Write the configuration of the W4 + A4/A8 search as a GGUF file: W4 layers in q4_0, the rest in f16, smoothing folded in.

For example:

    python scripts/export_gguf_official.py --model demo/model --config mixed_precision_config.pt --output mixed.gguf
"""

import time
from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_base_kl_flag, add_model_id_flag, add_threads_flag, parser, run


def main(args) -> None:
    """Write the configuration as a GGUF file. Raises `UserError`."""
    from bitplan.cli.inputs import clashes, refuse
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info, open_described_checkpoint
    from bitplan.plans.names import name_of_plan
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.runtimes.gguf.runtime import RUNTIME
    from bitplan.runtimes.runtime import ExportJob

    started = time.monotonic()
    beside = args.output.with_suffix(".json")
    refuse(clashes([args.output, beside], [args.config], args.model))
    info = model_info(args.model)
    plan = read_any_plan(args.config, info)
    notes = {"model_name": Path(info.path).resolve().name, "plan_name": name_of_plan(args.config)}
    notes["allow_base_kl"] = args.allow_base_kl
    checkpoint = open_described_checkpoint(args.model, info)
    job = ExportJob(
        checkpoint, info, plan, args.output, settings={"match": args.match}, notes=notes, threads=args.threads
    )
    report = RUNTIME.write(job)
    write_json(beside, report)
    facts = {"model": str(args.model.resolve()), "model_fingerprint": info.fingerprint}
    write_provenance(args.output, started, **facts)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_id_flag(flags)
    flags.add_argument(
        "--config", type=input_file, default=Path("mixed_precision_config.pt"), help="the search's configuration"
    )
    flags.add_argument(
        "--match",
        choices=("exact", "bits", "distortion"),
        default="bits",
        help="the type for W4: the one that holds its codes, the table's, or the one of nearest error",
    )
    add_base_kl_flag(flags)
    add_threads_flag(flags)
    flags.add_argument(
        "--output", type=output_file, default=Path("models/qwen2.5-7b-mixed.gguf"), help="GGUF file to write"
    )
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
