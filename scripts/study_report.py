"""Put the cells of a study into a table and a figure.

For example:

    python scripts/study_report.py --results results/demo --study bits --cell bits.3 target_avg_bits=3.0 --cell bits.4 target_avg_bits=4.0 --x target_avg_bits --output bits.tsv --text bits.txt --figure bits.svg
"""

from argparse import ArgumentParser

from bitplan.cli.inputs import input_folder, output_file
from bitplan.cli.parser import parser, run


def main(args) -> None:
    """Write the table and the figure of a study. Raises `UserError`."""
    from bitplan.core.errors import Problem, UserError
    from bitplan.core.files import write_table
    from bitplan.report.study import cell_row, columns_of, draw_study, study_table
    from bitplan.report.tables import write_text

    hint = "Give --cell NAME setting=value ..."
    wrong = [word for _, *varied in args.cell for word in varied if "=" not in word]
    if wrong:
        raise UserError(Problem("STUDY-BAD-CELL", f"--cell: {word}", "is not setting=value", hint) for word in wrong)
    cells = {name: dict(word.split("=", 1) for word in varied) for name, *varied in args.cell}
    rows = [cell_row(args.results / "plans" / name, name, varied) for name, varied in cells.items()]
    along = {*columns_of(rows)}
    if args.x not in along:
        raise UserError(
            [
                Problem(
                    "STUDY-NOT-VARIED",
                    f"--x {args.x}",
                    "is not varied in the study",
                    f"Give one of {', '.join(sorted(along))}",
                )
            ]
        )
    write_table(args.output, rows, columns_of(rows))
    draw_study(rows, args.x, args.figure, f"{args.results.name}: {args.study}")
    text = study_table(rows).text()
    write_text(args.text, text)
    print(text)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("--results", type=input_folder, required=True, help="folder of the model's results")
    flags.add_argument("--study", required=True, help="name of the study, for the title")
    flags.add_argument(
        "--cell", nargs="+", action="append", required=True, metavar="NAME setting=value", help="a plan and what varies"
    )
    flags.add_argument("--x", required=True, help="what the figure has along: a varied setting or avg_bits_layers")
    flags.add_argument("--output", type=output_file, required=True, help="TSV to write")
    flags.add_argument("--text", type=output_file, required=True, help="readable table to write")
    flags.add_argument("--figure", type=output_file, required=True, help="SVG to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
