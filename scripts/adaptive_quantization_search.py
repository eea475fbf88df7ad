"""Adaptive Alpha-Hill threshold search: as few bits as a limit on perplexity allows, in mxfp4, mxfp8 and bf16."""

import time
from pathlib import Path

from bitplan.command import add_compute_flags, add_model_flag, add_window_flags, count, parser, positive, run


def main(args) -> None:
    from bitplan.opening import opened, teacher_on
    from bitplan.plan import LayerPlan, Plan, write_config, write_plan
    from bitplan.provenance import write_provenance
    from bitplan.search.adaptive import AdaptiveSettings
    from bitplan.search.adaptive_run import alphas_of, print_result, search

    started = time.monotonic()
    names = ("ppl_threshold", "target_avg_bits", "step_size", "search", "polarity", "group_size")
    settings = AdaptiveSettings(**{name: getattr(args, name) for name in names})
    model = opened(args.model, args.dtype, args.device, args.threads)
    alphas = alphas_of(model, args.layer_stats, args.fit)
    calibration = teacher_on(args.calibration, model, args.length, args.sequences, "calibration.txt")
    model.model.tokens_per_batch = args.batch_size * calibration.tokens.shape[1]
    evaluation = teacher_on(args.evaluation, model, args.length, args.sequences, "") if args.evaluation else None
    plan = search(model, alphas, calibration, evaluation, settings)
    default = LayerPlan(group_size=settings.group_size)
    plan = Plan(plan.layers, {**plan.summary, "fit": args.fit})
    write_config(args.output_config, plan, default, model.info, "search_summary")
    write_plan(args.output_plan, plan, default, model.info, "search_summary")
    write_provenance(args.output_plan, started)
    print_result(plan, alphas)


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags, dtype="bf16")
    add_window_flags(flags)
    flags.add_argument("--ppl-threshold", type=positive, default=0.1, help="largest rise of perplexity, as a share")
    flags.add_argument(
        "--target-avg-bits", type=positive, default=8.0, help="average bits over all parameters to stop at"
    )
    flags.add_argument("--step-size", type=positive, default=0.5, help="step of the alpha threshold")
    flags.add_argument("--batch-size", type=count, default=1, help="windows in one batch; changes speed only")
    flags.add_argument("--search", choices=("linear", "bisect"), default="linear", help="try every step, or halve")
    flags.add_argument("--fit", choices=("hill", "xmin_mid"), default="hill", help="how alpha is fitted")
    polarities = ("high_alpha_fewer_bits", "low_alpha_fewer_bits")
    flags.add_argument(
        "--polarity", choices=polarities, default=polarities[0], help="which end of alpha is compressed first"
    )
    flags.add_argument("--group-size", type=count, default=32, help="values per block")
    flags.add_argument("--layer-stats", type=Path, help="layer_stats.tsv; computed when absent")
    flags.add_argument("--calibration", type=Path, help="text that the search measures perplexity on, or a saved one")
    flags.add_argument("--evaluation", type=Path, help="held-out text to score the plan found on, or a saved one")
    flags.add_argument("--output-config", type=Path, required=True, help="config.json to write")
    flags.add_argument("--output-plan", type=Path, required=True, help="plan.json to write")
    run(flags, main)
