"""Adaptive Alpha-Hill threshold search: as few bits as a limit on perplexity allows, in mxfp4, mxfp8 and bf16."""

import time

from bitplan.cli.inputs import input_file, input_folder, output_file
from bitplan.cli.parser import (
    add_calibration_window_flags,
    add_compute_flags,
    add_model_flag,
    add_text_flag,
    count,
    parser,
    positive,
    run,
)


def main(args) -> None:
    from bitplan.core.provenance import write_provenance
    from bitplan.evaluate.tasks import TaskSettings
    from bitplan.formats.table import get_format
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.fitting import warn_of_formats
    from bitplan.plans.plan import LayerPlan, Plan, write_config, write_plan
    from bitplan.reference.opening import prepare_model
    from bitplan.search.adaptive.algorithm import FORMAT_OF_STAGE, AdaptiveSettings
    from bitplan.search.adaptive.run import (
        alphas_of,
        batch_of,
        held_out,
        kept_beside,
        print_result,
        search,
        task_metric,
        texts_of,
        token_perplexity,
    )
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    formats = [get_format(name).name for name in args.formats or FORMAT_OF_STAGE]
    names = ("ppl_threshold", "target_avg_bits", "step_size", "search", "polarity", "group_size")
    settings = AdaptiveSettings(**{name: getattr(args, name) for name in names})
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    weights = QuantizedWeights(importance=read_importance(args.imatrix, model.info.quantizable))
    warn_of_formats(formats, model.info)
    evaluation, text = texts_of(args, model)
    alphas = alphas_of(model, args.layer_stats, args.fit)
    if args.task:
        tasks = TaskSettings((args.task,), args.task_limit, args.batch_size or 8, args.length, args.include_path)
        measure = task_metric(model, tasks, args.metric, weights)
    else:
        model.model.tokens_per_batch = (args.batch_size or batch_of(model, text)) * text.tokens.shape[1]
        measure = token_perplexity(model, text, weights)
    measure, kept = kept_beside(args.output_plan, measure, model, weights)
    plan = search(model, alphas, measure, settings, formats)
    found = held_out(model, evaluation, plan, weights)
    default = LayerPlan(group_size=settings.group_size)
    plan = Plan(plan.layers, {**plan.summary, **found, "fit": args.fit})
    write_config(args.output_config, plan, default, model.info, "search_summary")
    write_plan(args.output_plan, plan, default, model.info, "search_summary")
    write_provenance(args.output_plan, started)
    kept.remove()
    print_result(plan, alphas)


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags, dtype="auto")
    add_calibration_window_flags(flags)
    flags.add_argument("--ppl-threshold", type=positive, default=0.1, help="largest rise of perplexity, as a share")
    flags.add_argument(
        "--target-avg-bits",
        type=positive,
        default=8.0,
        help="average bits over all parameters that the plan is to be within; whether it is, is said",
    )
    flags.add_argument("--step-size", type=positive, default=0.5, help="step of the alpha threshold")
    flags.add_argument(
        "--batch-size", type=count, help="windows in one batch; changes speed only; by memory when absent"
    )
    flags.add_argument("--search", choices=("linear", "bisect"), default="linear", help="try every step, or halve")
    flags.add_argument("--fit", choices=("hill", "xmin_mid"), default="hill", help="how alpha is fitted")
    polarities = ("high_alpha_fewer_bits", "low_alpha_fewer_bits")
    flags.add_argument(
        "--polarity", choices=polarities, default=polarities[0], help="which end of alpha is compressed first"
    )
    flags.add_argument("--group-size", type=count, default=32, help="values per block")
    flags.add_argument(
        "--formats",
        nargs="+",
        action="extend",
        help="a format for each stage, fewest bits first; mxfp4 mxfp8 by default",
    )
    flags.add_argument("--task", help="limit a metric of this lm-eval task instead of the perplexity per token")
    flags.add_argument("--metric", help="which metric of the task; its usual one by default")
    flags.add_argument("--task-limit", type=count, help="documents of the task; all by default")
    flags.add_argument("--include-path", type=input_folder, help="folder with your own tasks (YAML files of lm-eval)")
    flags.add_argument("--layer-stats", type=input_file, help="layer_stats.tsv; computed when absent")
    add_text_flag(
        flags,
        "--calibration",
        "calibration.txt",
        "text that the search measures perplexity on, or a saved one",
        wanted=lambda args: args.task is None,
    )
    flags.add_argument("--evaluation", type=input_file, help="held-out text to score the plan found on, or a saved one")
    flags.add_argument(
        "--imatrix", type=input_file, help="importance matrix for GGUF types: the safetensors beside layer_stats.tsv"
    )
    flags.add_argument("--output-config", type=output_file, required=True, help="config.json to write")
    flags.add_argument("--output-plan", type=output_file, required=True, help="plan.json to write")
    run(flags, main)
