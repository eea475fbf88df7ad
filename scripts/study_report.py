"""Put the cells of a study into a table and a figure."""

from bitplan.cli.inputs import input_folder, output_file
from bitplan.cli.parser import parser, run


def main(args) -> None:
    from bitplan.core.errors import Problem, UserError
    from bitplan.core.files import write_aside, write_table
    from bitplan.report.study import cell_row, columns_of, draw_study, study_text

    hint = "Give --cell NAME setting=value ..."
    wrong = [word for _, *varied in args.cell for word in varied if "=" not in word]
    if wrong:
        raise UserError(Problem(f"--cell: {word}", "is not setting=value", hint) for word in wrong)
    cells = {name: dict(word.split("=", 1) for word in varied) for name, *varied in args.cell}
    rows = [cell_row(args.results / "plans" / name, name, varied) for name, varied in cells.items()]
    along = {*columns_of(rows)}
    if args.x not in along:
        raise UserError([Problem(f"--x {args.x}", "is not varied", f"Give one of {', '.join(sorted(along))}")])
    write_table(args.output, rows, columns_of(rows))
    with write_aside(args.figure) as aside:
        draw_study(rows, args.x, aside, f"{args.results.name}: {args.study}")
    with write_aside(args.text) as aside:
        aside.write_text(study_text(rows), encoding="utf-8")
    print(study_text(rows))


if __name__ == "__main__":
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
    run(flags, main)
