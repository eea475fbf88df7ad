"""Bits, scales, signal to noise ratio and GGUF type of each number format, as a table.

For example:

    python scripts/describe_formats.py --formats mxfp4 q4_k
"""

from argparse import ArgumentParser

from bitplan.cli.inputs import output_file
from bitplan.cli.parser import parser, run
from bitplan.config.flag_types import count, number


def main(args) -> None:
    """Print the table of formats, or put it into its place in a page. Raises `UserError`."""
    from bitplan.core.files import write_aside
    from bitplan.formats.describe import BEGIN, END, describe, draws, insert_table, markdown_table
    from bitplan.formats.table import FORMATS, get_format
    from bitplan.reference.text import read_text
    from bitplan.runtimes.gguf.format_types import stored_as

    formats = [get_format(name) for name in args.formats or FORMATS]
    old = read_text(args.output) if args.output and args.output.exists() else f"{BEGIN}\n{END}\n"
    insert_table(old, "", args.output)  # refuses a file without a place for the table before anything slow
    samples = draws(args.values, args.seed)
    table = markdown_table(describe(form, samples, stored_as(form)) for form in formats)
    print(table)
    if args.output:
        with write_aside(args.output) as aside:
            aside.write_text(insert_table(old, table, args.output), encoding="utf-8")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("--formats", nargs="+", help="formats by name; all by default")
    flags.add_argument("--values", type=count, default=512 * 1024, help="values drawn from each distribution")
    flags.add_argument("--seed", type=number(0, kind=int), default=0, help="seed of the values")
    flags.add_argument("--output", type=output_file, help="Markdown file to write the table into, as docs/formats.md")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
