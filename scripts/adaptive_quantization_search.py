"""Adaptive Alpha-Hill threshold search: as few bits as a limit on perplexity allows, in mxfp4, mxfp8 and bf16.

For example:

    python scripts/adaptive_quantization_search.py --model demo/model --ppl-threshold 0.005 --output-config config.json --output-plan plan.json
"""

import time
from argparse import ArgumentParser
from dataclasses import replace

from bitplan.cli.inputs import input_file, input_folder, output_file
from bitplan.cli.parser import (
    add_calibration_window_flags,
    add_compute_flags,
    add_imatrix_flag,
    add_model_flag,
    add_text_flag,
    parser,
    run,
)
from bitplan.config.flags import add_settings_flags
from bitplan.search.adaptive.settings import AdaptivePlan


def main(args) -> None:
    """Write the plan that the search finds, as a configuration and as a plan. Raises `UserError`."""
    from bitplan.core.provenance import write_provenance
    from bitplan.evaluate.tasks import TaskSettings
    from bitplan.formats.importance import check_importance
    from bitplan.formats.table import get_format
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.fitting import warn_of_formats
    from bitplan.plans.plan import SEARCH_SUMMARY, LayerPlan, write_config, write_plan
    from bitplan.reference.opening import prepare_model
    from bitplan.search.adaptive.algorithm import AdaptiveSettings
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
    formats = [get_format(name).name for name in args.formats]
    check_importance(formats, args.imatrix is not None)
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
    plan = replace(plan, summary={**plan.summary, **found, "fit": args.fit})
    write_config(args.output_config, plan, default, model.info, SEARCH_SUMMARY)
    write_plan(args.output_plan, plan, default, model.info)
    write_provenance(args.output_plan, started)
    kept.remove()
    print_result(plan, alphas)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags, dtype="auto")
    add_calibration_window_flags(flags)
    add_settings_flags(
        flags,
        AdaptivePlan,
        batch_size={"default": None, "help": "windows in one batch; changes speed only; by memory when absent"},
        include_path={"type": input_folder},
    )
    flags.add_argument("--layer-stats", type=input_file, help="layer_stats.tsv; computed when absent")
    add_text_flag(
        flags,
        "--calibration",
        "calibration.txt",
        "text that the search measures perplexity on, or a saved one",
        wanted=lambda args: args.task is None,
    )
    flags.add_argument("--evaluation", type=input_file, help="held-out text to score the plan found on, or a saved one")
    add_imatrix_flag(flags)
    flags.add_argument("--output-config", type=output_file, required=True, help="config.json to write")
    flags.add_argument("--output-plan", type=output_file, required=True, help="plan.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
