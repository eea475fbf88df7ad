"""Put all plans and baselines of a model into one table, one page and one figure."""

from bitplan.cli.inputs import input_file, input_folder, output_file
from bitplan.cli.parser import add_model_flag, parser, run


def main(args) -> None:
    from bitplan.core.files import write_aside, write_table
    from bitplan.models.layers import model_info
    from bitplan.report.agreement import agreement_html, agreement_text, read_agreement
    from bitplan.report.comparison import COLUMNS, Entry, as_page, as_text, check_results, checked_row, reference_speed
    from bitplan.report.figure import FILE_SIZE, PLAN_SIZE, as_simulated, draw
    from bitplan.report.tasks import task_columns, task_rows, tasks_html, tasks_text

    info = model_info(args.model)
    taus = read_agreement(args.agreement) if args.agreement else {}
    entries = [Entry(name, args.results / "plans" / name, True) for name in args.plan]
    baselines = args.baseline or []
    entries += [Entry(name, args.results / "baselines" / name, False) for name in baselines]
    check_results(entries, files=bool(baselines))
    reference = reference_speed(args.results / "baselines" / baselines[0], baselines[0]) if baselines else None
    rows = [checked_row(entry, info.parameters, reference) for entry in entries]
    tasks = task_rows(args.model_tasks, entries) if args.model_tasks else []
    title = f"{args.results.name}: plans compared"
    with_tasks = {each["name"]: each for each in tasks}
    figures = [{**each, **with_tasks.get(each["name"], {})} for each in rows]
    write_table(args.output, figures, (*COLUMNS, *task_columns(tasks)))
    with write_aside(args.figure) as aside:
        draw(rows if baselines else as_simulated(rows), aside, title, FILE_SIZE if baselines else PLAN_SIZE)
    texts = {args.text: as_text(rows) + tasks_text(tasks) + agreement_text(taus)}
    more = tasks_html(tasks) + agreement_html(taus)
    texts[args.page] = as_page(rows, more, args.figure.read_text(encoding="utf-8"), title)
    for path, text in texts.items():
        with write_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
    print(texts[args.text])


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--results", type=input_folder, required=True, help="folder of the model's results")
    flags.add_argument("--plan", action="append", default=[], help="a plan's name; may be given several times")
    flags.add_argument(
        "--baseline", action="append", help="a baseline's name, the reference of speed first; without any, no files"
    )
    flags.add_argument("--model-tasks", type=input_file, help="the model's tasks.json, where the plans have theirs too")
    flags.add_argument("--agreement", type=input_file, help="the agreement.json of a measured sensitivity table")
    flags.add_argument("--output", type=output_file, required=True, help="comparison.tsv to write")
    flags.add_argument("--text", type=output_file, required=True, help="readable table to write")
    flags.add_argument("--page", type=output_file, required=True, help="comparison.html to write")
    flags.add_argument("--figure", type=output_file, required=True, help="SVG to write")
    run(flags, main)
