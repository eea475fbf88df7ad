"""Put all plans and baselines of a model into one table, one page and one figure.

For example:

    python scripts/report.py --model results/demo/model.json --results results/demo --plan optimal-q4 --baseline q4_k_m --output comparison.tsv --text comparison.txt --page comparison.html --figure comparison.svg
"""

from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, input_folder, output_file
from bitplan.cli.parser import add_model_flag, parser, run


def main(args) -> None:
    """Write the comparison: table, JSON, page and figure. Raises `UserError`."""
    from bitplan.core.files import write_json, write_table
    from bitplan.models.layers import model_info
    from bitplan.report.agreement import agreement_table, read_agreement
    from bitplan.report.answers import answers_of
    from bitplan.report.comparison import COLUMNS, comparison_json, comparison_table, damage
    from bitplan.report.figure import draw
    from bitplan.report.front import axes_of, dominated, headlines, with_best
    from bitplan.report.page.content import charts_of, offers_of
    from bitplan.report.page.render import Content, links_to, page
    from bitplan.report.predicted import measured_over_predicted, read_prediction
    from bitplan.report.results import Entry, check_results, reference_speed, row_of
    from bitplan.report.runtimes import runtime_rows, runtimes_table
    from bitplan.report.steps import steps_table
    from bitplan.report.tables import texts, write_text
    from bitplan.report.tasks import task_columns, task_rows, tasks_table

    info = model_info(args.model)
    known = read_prediction(args.sensitivity, args.palette, info) if args.sensitivity else None
    taus = read_agreement(args.agreement) if args.agreement else {}
    entries = [Entry(name, args.results / "plans" / name, True) for name in args.plan]
    baselines = args.baseline or []
    entries += [Entry(name, args.results / "baselines" / name, False) for name in baselines]
    check_results(entries, with_files=bool(baselines))
    reference = reference_speed(args.results / "baselines" / baselines[0], baselines[0]) if baselines else None
    rows = [row_of(entry, info.parameters, reference) for entry in entries]
    axes = axes_of(rows)
    rows = with_best(rows, axes)
    by_name = {row["name"]: row for row in rows}
    tasks = task_rows(args.model_tasks, entries) if args.model_tasks else []
    title = f"{args.results.name}: plans compared"
    in_runtimes = runtime_rows(entries, args.runtime, args.unscored)
    with_tasks = {each["name"]: each for each in tasks}
    figures = [{**each, **with_tasks.get(each["name"], {})} for each in rows]
    write_table(args.output, figures, (*COLUMNS, *task_columns(tasks)))
    if args.json:
        write_json(args.json, comparison_json(figures, in_runtimes))
    best_first = sorted(entries, key=lambda entry: damage(by_name[entry.name]))
    draw(rows, args.figure, title, axes)
    beside = (runtimes_table(in_runtimes), tasks_table(tasks), agreement_table(taus))
    tables = [comparison_table(rows), *filter(None, beside)]
    sentences = headlines(rows, axes)
    text = texts(sentences, tables)
    write_text(args.text, text)
    content = Content(
        title=title,
        tables=tables,
        figure=args.figure.read_text(encoding="utf-8"),
        headlines=sentences,
        charts=charts_of(rows, axes, best_first, info, known),
        answers=answers_of(best_first) if baselines else {},
        aside=frozenset(dominated(rows, axes)),
        links=links_to(best_first, args.page),
        offers=offers_of(rows, axes, info, known, args.calibration_name),
        steps=steps_table(args.results, args.plan),
        predicted=measured_over_predicted(rows, axes) if known else "",
    )
    write_text(args.page, page(content))
    print(text)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--results", type=input_folder, required=True, help="folder of the model's results")
    flags.add_argument("--plan", action="append", default=[], help="a plan's name; may be given several times")
    flags.add_argument(
        "--baseline", action="append", help="a baseline's name, the reference of speed first; without any, no files"
    )
    flags.add_argument(
        "--runtime", action="append", default=[], help="a runtime that the plans have files of; several times"
    )
    told = "a runtime whose files are not scored here; may be given several times"
    flags.add_argument("--unscored", action="append", default=[], help=told)
    flags.add_argument("--model-tasks", type=input_file, help="the model's tasks.json, where the plans have theirs too")
    flags.add_argument("--agreement", type=input_file, help="the agreement.json of a measured sensitivity table")
    flags.add_argument(
        "--sensitivity", type=input_file, help="sensitivity.tsv with KL: the page shows what it predicts"
    )
    flags.add_argument("--palette", action="append", default=[], help="a format of the predicted plans; several times")
    flags.add_argument("--calibration-name", default="TEXT", help="calibration text that the page's command names")
    flags.add_argument("--output", type=output_file, required=True, help="comparison.tsv to write")
    flags.add_argument("--json", type=output_file, help="comparison.json to write: the rows, and what the metrics are")
    flags.add_argument("--text", type=output_file, required=True, help="readable table to write")
    flags.add_argument("--page", type=output_file, required=True, help="comparison.html to write")
    flags.add_argument("--figure", type=output_file, required=True, help="SVG to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
