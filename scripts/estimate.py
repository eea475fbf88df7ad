"""Estimate time, memory and disk of every step of a model on this machine, from one block timed.

For example:

    python scripts/estimate.py --model demo/model --name demo --output estimate.json
"""

from argparse import ArgumentParser

from bitplan.cli.inputs import output_file
from bitplan.cli.parser import add_model_flag, parser, run
from bitplan.config.flag_types import count


def main(args) -> None:
    """Write the estimate, as JSON and as text. Raises `UserError`."""
    from bitplan.core.files import write_aside, write_json
    from bitplan.workflow.estimate.make import estimated
    from bitplan.workflow.estimate.read import cores_here, settings_for, with_threads

    settings = with_threads(settings_for(args.settings, args.name, args.model), args.threads)
    made = estimated(args.model, args.name, settings, args.cores or cores_here())
    write_json(args.output, made.to_json())
    if args.text:
        with write_aside(args.text) as aside:
            aside.write_text(made.text, encoding="utf-8")
    print(made.text, end="")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--name", default="model", help="name of the model in the settings")
    told = "file with settings of the workflow, or their text; without: one optimal plan at the size of Q4_K_M"
    flags.add_argument("--settings", help=told)
    flags.add_argument("--cores", type=count, help="processor cores of the run; all by default")
    flags.add_argument("--threads", type=count, help="threads of a step; those of the settings by default")
    flags.add_argument("--output", type=output_file, required=True, help="estimate.json to write")
    flags.add_argument("--text", type=output_file, help="text file to write: the table and the total")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
