"""Run lm-eval tasks on a model, or on a model under a plan: bundled tasks, your own, or the harness's.

For example:

    python scripts/eval_with_lm_eval.py --model demo/model --plan plan.json --tasks demo_stories --limit 50 --output tasks.json
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, input_folder, output_file
from bitplan.cli.parser import add_compute_flags, add_imatrix_flag, add_model_flag, parser, run
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import TaskSettings


def figures_text(figures) -> str:
    """Return {task: {metric: value}} as a table, a line for each metric."""
    from bitplan.core.tables import Column, text_table

    rows = [
        {
            "task": task,
            "metric": metric,
            "value": value,
            "error": row.get(f"{metric}_stderr"),
            "documents": row["documents"],
        }
        for task, row in figures.items()
        for metric, value in row.items()
        if isinstance(value, float) and not metric.endswith("_stderr")
    ]
    columns = (
        *(Column("task", "task"), Column("metric", "metric", left=True), Column("value", "value", "{:.4f}")),
        *(Column("error", "error", "{:.4f}"), Column("documents", "documents")),
    )
    return text_table(rows, columns)


def main(args) -> None:
    """Write the figures of the tasks. Raises `UserError`."""
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.evaluate.tasks import BUNDLED_TASKS, TaskSettings, load_tasks, run_tasks
    from bitplan.evaluate.whole_model import open_whole_model
    from bitplan.plans.apply import QuantizedWeights, scales_span_windows
    from bitplan.plans.plan import check_columns, check_plan_importance, uniform_plan
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.reference.opening import prepare_model
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    settings = TaskSettings(
        tuple(args.tasks or BUNDLED_TASKS), args.limit, args.batch_size, args.max_length, args.include_path
    )
    model = prepare_model(args.model, args.dtype, args.device, args.threads)
    plan = read_any_plan(args.plan, model.info) if args.plan else uniform_plan(model.info, "bf16")
    check_columns(plan, model.info)
    weights = QuantizedWeights(limit=0, importance=read_importance(args.imatrix, model.info.quantizable))
    check_plan_importance(plan, model.info, weights.importance)
    tasks = load_tasks(settings)
    with open_whole_model(model.model, model.info, weights).under(plan) as module:
        figures = run_tasks(tasks, module, model.checkpoint.folder, scales_span_windows(plan, weights.formats))
    if args.output:
        how = {"limit": args.limit, "max_length": args.max_length, "dtype": args.dtype}
        write_json(args.output, {"scored": "plan" if args.plan else "model", "tasks": figures, **how})
        write_provenance(args.output, started)
    print(figures_text(figures))


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    flags.add_argument("--plan", type=input_file, help="config.json or plan.json to apply")
    tasks = {"help": "names of tasks; the bundled ones by default"}
    add_settings_flags(flags, TaskSettings, names=tasks, include_path={"type": input_folder})
    add_imatrix_flag(flags)
    flags.add_argument("--output", type=output_file, help="tasks.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
