"""Run lm-eval tasks on a model, or on a model under a plan: bundled tasks, your own, or the harness's."""

import time

from bitplan.cli.inputs import input_file, input_folder, output_file
from bitplan.cli.parser import add_compute_flags, add_model_flag, count, number, parser, run


def main(args) -> None:
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.evaluate.tasks import BUNDLED_TASKS, TaskSettings, load_tasks, run_tasks
    from bitplan.evaluate.whole_model import open_whole_model
    from bitplan.plans.apply import QuantizedWeights, scales_span_windows
    from bitplan.plans.plan import check_columns, uniform_plan
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
    tasks = load_tasks(settings)
    with open_whole_model(model.model, model.info, weights).under(plan) as module:
        figures = run_tasks(tasks, module, model.checkpoint.folder, scales_span_windows(plan, weights.formats))
    if args.output:
        how = {"limit": args.limit, "max_length": args.max_length, "dtype": args.dtype}
        write_json(args.output, {"scored": "plan" if args.plan else "model", "tasks": figures, **how})
        write_provenance(args.output, started)
    print(f"{'task':<24} {'metric':<20} {'value':>12} {'error':>10} {'documents':>10}")
    for task, row in figures.items():
        for metric in (m for m, v in row.items() if isinstance(v, float) and not m.endswith("_stderr")):
            error = row.get(f"{metric}_stderr")
            shown = "" if error is None else f"{error:.4f}"
            print(f"{task:<24} {metric:<20} {row[metric]:>12.4f} {shown:>10} {row['documents'] or '':>10}")


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    flags.add_argument("--plan", type=input_file, help="config.json or plan.json to apply")
    flags.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        help="names of tasks; the bundled ones by default",
    )
    flags.add_argument("--include-path", type=input_folder, help="folder with your own tasks (YAML files of lm-eval)")
    flags.add_argument("--batch_size", type=count, default=8, help="requests in one batch")
    flags.add_argument("--max_length", type=number(2, kind=int), default=512, help="tokens that the model sees at once")
    flags.add_argument("--limit", type=count, help="documents of each task; all by default")
    flags.add_argument("--imatrix", type=input_file, help="importance matrix: the safetensors beside layer_stats.tsv")
    flags.add_argument("--output", type=output_file, help="tasks.json to write")
    run(flags, main)
