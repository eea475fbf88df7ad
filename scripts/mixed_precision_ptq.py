"""Search W4 weights with A4 or A8 activations for every layer: sensitivity, SmoothQuant, a genetic search under a compression.

For example:

    python scripts/mixed_precision_ptq.py --model demo/model --target-compression 0.75 --output mixed_precision_config.pt
    python scripts/mixed_precision_ptq.py --model demo/model --palette q4_k q5_k q6_k --target-avg-bits 5 --output-plan plan.json
"""

import time
from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import (
    add_calibration_window_flags,
    add_compute_flags,
    add_model_id_flag,
    add_text_flag,
    parser,
    run,
)
from bitplan.config.flags import add_settings_flags, choices_of
from bitplan.config.settings import SensitivitySettings
from bitplan.search.genetic.settings import GeneticPlan

AUTO = "auto"
# Without the flag, 0.5 where inputs are the same for a layer's formats, and none otherwise.
SMOOTH_ALPHA = {"default": None, "help": "SmoothQuant's alpha, or several to choose from; 0.5 by default"}


def main(args) -> None:
    """Write the configuration that the search finds, and print its layers. Raises `UserError`."""
    from bitplan.core.errors import user_error
    from bitplan.core.provenance import write_provenance
    from bitplan.formats.importance import check_importance
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
    from bitplan.sensitivity.local_errors import SensitivitySettings as LocalSettings
    from bitplan.sensitivity.local_errors import activation_choices, choice_named
    from bitplan.sensitivity.local_run import measured

    started = time.monotonic()
    compression = None if args.target_compression == AUTO else args.target_compression
    target = Target(compression, args.target_avg_bits, tuple(args.palette), args.metric)
    target.check()
    if target.avg_bits is not None and not (args.output_config or args.output_plan):
        what = "needs an output for its plan: the torch configuration supports W4 with A4 or A8 only"
        raise user_error("GENETIC-NO-OUTPUT", "--palette", what, "Give --output-plan")
    target.check_smoothing(args.smooth_alpha)
    check_sources(args.sensitivity, {"--smooth-alpha": args.smooth_alpha, "--calibration": args.calibration})
    if args.sensitivity:
        info, table = model_info(args.model), read_sensitivity(args.sensitivity)
        smoothing = smoothing_of(table, args.sensitivity)
    else:
        check_importance(target.palette, given=False)
        model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
        target.check_for(model.info)
        choices = (*activation_choices(args.activation_scope), *map(choice_named, target.palette))
        settings = LocalSettings(choices, tuple(args.smooth_alpha or (() if target.with_inputs else (0.5,))))
        rows, smoothing = measured(model, args.calibration, args.length, args.sequences, settings)
        info, table = model.info, sensitivity_of(rows)
    warn_of_formats(target.palette, info)
    genetic = GeneticSettings(population=args.ga_pop, generations=args.ga_gen, seed=args.seed)
    plan, found = genetic_plan(table, smoothing, info, target, args.activation_scope, genetic, args.solution == "exact")
    default = LayerPlan()
    if target.avg_bits is None:
        write_pt(args.output, plan, info)
    if args.output_config:
        write_config(args.output_config, plan, default, info)
    if args.output_plan:
        write_plan(args.output_plan, plan, default, info)
    for path in filter(None, (args.output_config, args.output_plan)):
        if plan.smoothing is None:
            write_smoothing(smoothing_path(path), Smoothing(()))
    if args.figure:
        draw_history(found.result.history, found.exact.damage, args.figure, "Genetic search")
    write_provenance(args.output_plan or args.output_config or args.output, started)
    print_result(plan, found, info)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_id_flag(flags)
    add_compute_flags(flags, device="auto")
    add_calibration_window_flags(flags)
    # The command reads tables of others too, whose damage may be measured KL.
    metrics = (*choices_of(GeneticPlan, "metric"), "kld")
    palette = {"help": "formats, or weights/inputs, to choose from, with target_avg_bits"}
    add_settings_flags(flags, GeneticPlan, metric={"choices": metrics}, palette=palette)
    flags.add_argument("--sensitivity", type=input_file, help="table of scripts/sensitivity.py; measured when absent")
    add_text_flag(
        flags,
        "--calibration",
        "calibration.txt",
        "calibration text, or `random` for Gaussian inputs",
        kind=str,
        wanted=lambda args: args.sensitivity is None,
    )
    add_settings_flags(flags, SensitivitySettings, only=("activation_scope", "smooth_alpha"), smooth_alpha=SMOOTH_ALPHA)
    flags.add_argument(
        "--output",
        type=output_file,
        default=Path("mixed_precision_config.pt"),
        help="the configuration as torch writes it",
    )
    flags.add_argument("--output-config", type=output_file, help="config.json to write")
    flags.add_argument("--output-plan", type=output_file, help="plan.json to write")
    flags.add_argument("--figure", type=output_file, help="SVG of the search's history to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
