"""Write the model card (README.md) of an exported plan: what it is, what it costs, how to run it and how to make it again.

For example:

    python scripts/model_card.py --model demo/model --plan plan.json --report report.json --scores perplexity.json --output README.md
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_model_flag, parser, run


def main(args) -> None:
    """Write the card. Raises `UserError`."""
    from bitplan.core.files import read_json
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.runtimes.card.card import check_report, make_card, read_scores, write_card

    started, info = time.monotonic(), model_info(args.model)
    plan, report = read_any_plan(args.plan, info), read_json(args.report)
    check_report(args.report, report)
    write_card(args.output, make_card(info, (args.plan, plan), report, read_scores(args.scores), args.calibration))
    write_provenance(args.output, started)
    print(f"{args.output}: the card of {report['name']}")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    plans = "config.json, plan.json or mixed_precision_config.pt"
    flags.add_argument("--plan", type=input_file, required=True, help=plans)
    flags.add_argument("--report", type=input_file, required=True, help="report.json of the export")
    flags.add_argument("--scores", type=input_file, help="perplexity.json of the file, or of the plan")
    flags.add_argument("--calibration", type=input_file, help="the calibration text, for its SHA-256")
    flags.add_argument("--output", type=output_file, required=True, help="README.md to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
