"""Write a plan in the file format of a runtime (gguf ...), and report what it holds of every layer.

For example:

    python scripts/export_plan.py --model demo/model --plan plan.json --runtime mlx --output packed --report report.json
"""

from argparse import ArgumentParser

from bitplan.cli.inputs import any_path, output_file, output_path
from bitplan.cli.parser import add_export_flags, parser, run


def main(args) -> None:
    """Write the plan for a runtime, and the report on its layers. Raises `UserError`."""
    from bitplan.runtimes.export import export
    from bitplan.runtimes.registry import runtime_named

    export(runtime_named(args.runtime), args)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("--runtime", required=True, help="name of the runtime, e.g. gguf")
    add_export_flags(flags)
    flags.add_argument("--base", type=any_path, help="what the runtime starts from: gguf: the model in full precision")
    flags.add_argument("--output", type=output_path, required=True, help="file or folder to write")
    flags.add_argument("--report", type=output_file, required=True, help="report.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
