"""`bitplan plan`: which format each weight matrix gets, without writing a model."""

import shutil
from argparse import ArgumentParser, Namespace

from bitplan.cli.inputs import output_file
from bitplan.console.quantize import figures
from bitplan.console.snakemake_run import flags_of, run_workflow
from bitplan.console.step_warnings import records_of, tell_warnings, warnings_of
from bitplan.console.wishes import add_run_flags, add_work_flag, prepared_project, wish_parser
from bitplan.core.files import read_json, write_aside

ABOUT = """Find the best number format for each weight matrix and write the plan.

For example:

    bitplan plan ./model --text my-text.txt --bits 4.5 -o plan.json
"""


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = wish_parser(ABOUT)
    add_work_flag(flags)
    add_run_flags(flags)
    flags.add_argument("-o", "--output", type=output_file, required=True, help="plan.json to write")
    return flags


def main(args: Namespace) -> None:
    """Run the workflow up to the plan and its simulated scores (rounded to nearest), copy the plan and print a line."""
    project, wish = prepared_project(args)
    folder = project.result("plans", wish.name)
    names = ("plan.json", "bits.json", "perplexity.json")
    run_workflow(project, [folder / name for name in names], args.cores, flags_of(args))
    if args.dry_run:
        return
    with write_aside(args.output) as aside:
        shutil.copyfile(folder / "plan.json", aside)
    bits, scores = read_json(folder / "bits.json")["avg_bits"], read_json(folder / "perplexity.json")
    print(f"{args.output}: {bits:.2f} bits per parameter of the plan's formats, simulated: {figures(scores)}")
    tell_warnings(warnings_of(project, records_of(project, [wish.name])))
