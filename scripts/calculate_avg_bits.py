"""Average bits of a configuration: over all parameters, over the layers, and of the GGUF file if there is one.

For example:

    python scripts/calculate_avg_bits.py --config plan.json --model demo/model --target-avg-bits 8
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_model_flag, parser, run
from bitplan.config.flag_types import positive
from bitplan.config.flags import add_settings_flags
from bitplan.search.plan_settings import CheckSettings


def main(args) -> None:
    """Print and write the average bits; exit code 2 for a plan that misses a target which it must hold. Raises `UserError`."""
    from bitplan.core.files import write_json, write_table
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info
    from bitplan.plans.bits import TargetMissed, bits_report, check_target, pattern_counts, print_report
    from bitplan.plans.torch_config import read_any_plan

    started, info = time.monotonic(), model_info(args.model)
    plan = read_any_plan(args.config, info)
    report, rows = bits_report(plan, info, args.gguf, args.target_avg_bits)
    report["patterns"] = pattern_counts(args.config, info)
    print_report(report, rows)
    check_target(report, args.config, TargetMissed(args.on_miss), args.tolerance)
    if args.output and not args.dry_run:
        write_table(args.output, rows, tuple(rows[0]), delimiter=",")
    if args.json and not args.dry_run:
        write_json(args.json, report)
        write_provenance(args.json, started)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument(
        "--config", type=input_file, required=True, help="config.json, plan.json or mixed_precision_config.pt"
    )
    add_model_flag(flags)
    flags.add_argument("--gguf", type=input_file, help="GGUF file of the plan, for the average bits of the file")
    flags.add_argument(
        "--target-avg-bits", type=positive, help="target; by default the one in the configuration, if any"
    )
    add_settings_flags(flags, CheckSettings)
    flags.add_argument("--output", type=output_file, help="CSV of the layers to write")
    flags.add_argument("--json", type=output_file, help="bits.json to write")
    flags.add_argument("--dry-run", action="store_true", help="print only, write nothing")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
