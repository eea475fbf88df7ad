"""Say how well a runtime holds each layer of a plan, before anything is written.

For example:

    python scripts/check_runtime.py --model demo/model --plan plan.json --runtime compressed_tensors
"""

from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_model_flag, parser, run


def main(args) -> None:
    """Print the verdict on each layer; exit code 2 if one is refused. Raises `UserError`."""
    from bitplan.core.files import write_json
    from bitplan.models.layers import model_info
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.runtimes.check import check_plan, print_check
    from bitplan.runtimes.registry import runtime_named
    from bitplan.runtimes.verdicts import refuse_unheld

    runtime, info = runtime_named(args.runtime), model_info(args.model)
    plan = read_any_plan(args.plan, info)
    report = check_plan(runtime, plan, info)
    print_check(report)
    if args.output:
        write_json(args.output, report)
    refuse_unheld(runtime, plan, info)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument(
        "--plan", type=input_file, required=True, help="config.json, plan.json or mixed_precision_config.pt"
    )
    flags.add_argument("--runtime", required=True, help="name of the runtime, as compressed_tensors")
    flags.add_argument("--output", type=output_file, help="JSON file to write, with the verdict on every layer")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
