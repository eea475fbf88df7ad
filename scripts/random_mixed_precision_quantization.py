"""Random mixed precision: shares of mxfp4 and bf16 drawn by seed, experts and attention first, the rest mxfp8.

For example:

    python scripts/random_mixed_precision_quantization.py --model demo/model --mxfp4-ratio 0.25 --bf16-ratio 0.25 --seed 456 --output-config config.json
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import output_file
from bitplan.cli.parser import add_compute_flags, add_model_flag, parser, run
from bitplan.config.flags import add_settings_flags
from bitplan.search.random.settings import RandomPlan


def main(args) -> None:
    """Write the random plan. Raises `UserError`."""
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info
    from bitplan.plans.plan import LayerPlan, write_config, write_plan
    from bitplan.search.random.algorithm import DEFAULT_FORMAT, RandomSettings, random_plan
    from bitplan.search.random.report import print_result

    started = time.monotonic()
    settings = RandomSettings(args.mxfp4_ratio, args.bf16_ratio, args.group_size, args.seed)
    settings.check()
    info = model_info(args.model)
    plan = random_plan(info, settings)
    default = LayerPlan(DEFAULT_FORMAT, DEFAULT_FORMAT, settings.group_size)
    write_config(args.output_config, plan, default, info)
    if args.output_plan:
        write_plan(args.output_plan, plan, default, info)
    write_provenance(args.output_config, started)
    print_result(plan, info, args.verbose)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_settings_flags(flags, RandomPlan)
    flags.add_argument("--output-config", type=output_file, required=True, help="config.json to write")
    flags.add_argument("--output-plan", type=output_file, help="plan.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
