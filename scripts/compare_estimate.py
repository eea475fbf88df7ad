"""Compare the estimate of a model with the times and memory of its finished steps.

For example:

    python scripts/compare_estimate.py --results results/demo
"""

from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, input_folder
from bitplan.cli.parser import parser, run


def main(args) -> None:
    """Print the estimate of each step beside what it took. Raises `UserError`."""
    from bitplan.core.files import read_json
    from bitplan.workflow.estimate.compare import comparison_text

    print(comparison_text(read_json(args.estimate or args.results / "estimate.json"), args.results))


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("--results", type=input_folder, required=True, help="folder of a model's results: results/NAME")
    flags.add_argument("--estimate", type=input_file, help="estimate.json; that of the results by default")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
