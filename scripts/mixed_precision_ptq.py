"""Search W4 weights with A4 or A8 activations for every layer: sensitivity, SmoothQuant, a genetic search under a compression."""

import time
from argparse import ArgumentTypeError
from pathlib import Path

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import (
    add_calibration_window_flags,
    add_compute_flags,
    add_model_id_flag,
    add_text_flag,
    count,
    number,
    parser,
    positive,
    run,
)

AUTO = "auto"


def compression_or_auto(text: str) -> float | str:
    """The argparse type of a compression, or the word that leaves it to the labels."""
    try:
        return text if text == AUTO else number(0.0, 1.0, open_low=True)(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is neither a number over 0 to 1 nor {AUTO}") from None


def main(args) -> None:
    from bitplan.core.errors import user_error
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info
    from bitplan.plans.fitting import warn_of_formats
    from bitplan.plans.plan import LayerPlan, write_config, write_plan
    from bitplan.plans.smoothing import Smoothing, smoothing_path, write_smoothing
    from bitplan.plans.torch_config import write_pt
    from bitplan.reference.opening import prepare_model
    from bitplan.search.genetic.algorithm import GeneticSettings
    from bitplan.search.genetic.figure import draw_history
    from bitplan.search.genetic.rows import check_sources, read_sensitivity, sensitivity_of, smoothing_of
    from bitplan.search.genetic.run import Target, genetic_plan, print_result
    from bitplan.sensitivity.local_errors import SensitivitySettings, activation_choices, choice_named
    from bitplan.sensitivity.local_run import measured

    started = time.monotonic()
    compression = None if args.target_compression == AUTO else args.target_compression
    target = Target(compression, args.target_avg_bits, tuple(args.palette or ()), args.metric)
    target.check()
    if target.avg_bits is not None and not (args.output_config or args.output_plan):
        what = "has no place for its plan: the configuration of torch holds W4 with A4 or A8 only"
        raise user_error("--palette", what, "Give --output-plan")
    check_sources(args.sensitivity, {"--smooth-alpha": args.smooth_alpha, "--calibration": args.calibration})
    if args.sensitivity:
        info, table = model_info(args.model), read_sensitivity(args.sensitivity)
        smoothing = smoothing_of(table, args.sensitivity)
    else:
        model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
        target.check_for(model.info)
        choices = (*activation_choices(args.activation_scope), *map(choice_named, target.palette))
        # A plan that chooses inputs by layer has no factors.
        plain = any(choice_named(name).inputs_change for name in target.palette)
        settings = SensitivitySettings(choices, tuple(args.smooth_alpha or (() if plain else (0.5,))))
        rows, smoothing = measured(model, args.calibration, args.length, args.sequences, settings)
        info, table = model.info, sensitivity_of(rows)
    warn_of_formats(target.palette, info)
    genetic = GeneticSettings(population=args.ga_pop, generations=args.ga_gen, seed=args.seed)
    plan, found = genetic_plan(table, smoothing, info, target, args.activation_scope, genetic, args.solution == "exact")
    default = LayerPlan()
    if target.avg_bits is None:
        write_pt(args.output, plan, info)
    if args.output_config:
        write_config(args.output_config, plan, default, info, "search_summary")
    if args.output_plan:
        write_plan(args.output_plan, plan, default, info, "search_summary")
    for path in filter(None, (args.output_config, args.output_plan)):
        if plan.smoothing is None:
            write_smoothing(smoothing_path(path), Smoothing(()))
    if args.figure:
        draw_history(found.result.history, found.exact.damage, args.figure, "Genetic search")
    write_provenance(args.output_plan or args.output_config or args.output, started)
    print_result(plan, found, info)


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_id_flag(flags)
    add_compute_flags(flags, device="auto")
    add_calibration_window_flags(flags)
    flags.add_argument("--ga_pop", type=number(3, kind=int), default=30, help="plans in a generation")
    flags.add_argument("--ga_gen", type=count, default=25, help="generations")
    flags.add_argument(
        "--target_compression",
        type=compression_or_auto,
        default=0.75,
        help="bound on (4 + mean activation bits) / 12; auto: A8 where the sensitivity is high, A4 elsewhere",
    )
    flags.add_argument(
        "--target-avg-bits", type=positive, help="bound on average bits over all parameters instead, with --palette"
    )
    flags.add_argument(
        "--palette", nargs="+", action="extend", help="weight formats to choose from, with --target-avg-bits"
    )
    flags.add_argument(
        "--metric",
        choices=("mse", "relative_mse", "weighted_error", "kld"),
        default="mse",
        help="column of the table that the search minimizes",
    )
    flags.add_argument(
        "--solution", choices=("genetic", "exact"), default="genetic", help="which of the two solutions the plan holds"
    )
    flags.add_argument("--seed", type=number(0, kind=int), default=0, help="the same seed gives the same plan")
    flags.add_argument("--sensitivity", type=input_file, help="table of scripts/sensitivity.py; measured when absent")
    add_text_flag(
        flags,
        "--calibration",
        "calibration.txt",
        "calibration text, or `random` for Gaussian inputs",
        kind=str,
        wanted=lambda args: args.sensitivity is None,
    )
    flags.add_argument(
        "--activation-scope", choices=("tensor", "token"), default="tensor", help="what an activation scale spans"
    )
    flags.add_argument(
        "--smooth-alpha",
        type=number(0.0, 1.0),
        nargs="+",
        action="extend",
        help="SmoothQuant's alpha, or several to choose from; 0.5 by default",
    )
    flags.add_argument(
        "--output",
        type=output_file,
        default=Path("mixed_precision_config.pt"),
        help="the configuration as torch writes it",
    )
    flags.add_argument("--output-config", type=output_file, help="config.json to write")
    flags.add_argument("--output-plan", type=output_file, help="plan.json to write")
    flags.add_argument("--figure", type=output_file, help="SVG of the search's history to write")
    run(flags, main)
