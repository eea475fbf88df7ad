"""Write a plan as a GGUF file, each tensor in the type that holds its format or comes nearest, and report every tensor.

For example:

    python scripts/export_gguf.py --model demo/model --plan plan.json --output model.gguf --report report.json
"""

from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_export_flags, parser, run


def main(args) -> None:
    """Write the plan as a GGUF file, and the report on its tensors. Raises `UserError`."""
    from bitplan.runtimes.export import export
    from bitplan.runtimes.gguf.runtime import RUNTIME

    report = export(RUNTIME, args)
    print(f"{report['differences']} layers differ from the plan; {args.report} says how and why")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_export_flags(flags)
    flags.add_argument("--base", type=input_file, help="the model as GGUF in full precision; converted when absent")
    flags.add_argument("--output", type=output_file, required=True, help="GGUF file to write")
    flags.add_argument("--report", type=output_file, required=True, help="report.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
