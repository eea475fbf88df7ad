"""Measure at every layer what a format does to its output: W4 with A4 and A8 under smoothing, and a palette of weight formats."""

import time

from bitplan.command import add_compute_flags, add_model_flag, add_window_flags, count, number, parser, run
from bitplan.flag_files import output_file


def main(args) -> None:
    from bitplan.files import write_table
    from bitplan.formats.table import format_named
    from bitplan.models.smoothing import Smoothing, smoothing_path, write_smoothing
    from bitplan.opening import opened
    from bitplan.provenance import write_provenance
    from bitplan.search.sensitivity_run import GAUSSIAN, measured
    from bitplan.statistics.sensitivity import COLUMNS, Choice, SensitivitySettings, activation_choices

    started = time.monotonic()
    palette = tuple(Choice(format_named(name).name) for name in args.palette or ())
    choices = (*activation_choices(args.activation_scope, args.group_size), *palette)
    alphas = tuple(args.smooth_alpha) if args.smooth_alpha is not None else (0.5,)
    settings = SensitivitySettings(choices, () if args.no_smoothing else alphas, not args.norms_only, args.tokens)
    model = opened(args.model, args.dtype, args.device, args.threads)
    source = GAUSSIAN if args.random else args.calibration
    rows, smoothing = measured(model, source, args.length, args.sequences, settings)
    write_table(args.output, rows, COLUMNS)
    write_smoothing(smoothing_path(args.output), smoothing or Smoothing(()))
    write_provenance(args.output, started, block_forward_tokens=model.model.tokens_forwarded)
    inputs = "Gaussian inputs" if source == GAUSSIAN else "the calibration text"
    print(f"{len(rows)} rows for {len(model.info.quantizable)} layers on {inputs}: {args.output}")


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_window_flags(flags)
    flags.add_argument(
        "--calibration",
        help="text, or one saved by layer_stats.py, or `random` for Gaussian inputs; the bundled text by default",
    )
    flags.add_argument("--random", action="store_true", help="the same as --calibration random")
    flags.add_argument("--palette", nargs="+", action="extend", help="weight formats to measure besides")
    flags.add_argument("--group-size", type=count, default=128, help="weights per group of int4")
    flags.add_argument(
        "--activation-scope", choices=("tensor", "token"), default="tensor", help="what an activation scale spans"
    )
    flags.add_argument(
        "--smooth-alpha",
        type=number(0.0, 1.0),
        nargs="+",
        action="extend",
        help="SmoothQuant's alpha; the best of several for each group",
    )
    flags.add_argument("--no-smoothing", action="store_true", help="measure without SmoothQuant")
    flags.add_argument("--norms-only", action="store_true", help="smooth only what can be folded into a norm")
    flags.add_argument("--tokens", type=count, default=2048, help="tokens looked at for each layer")
    flags.add_argument(
        "--output", type=output_file, required=True, help="sensitivity.tsv to write; smoothing factors stand beside it"
    )
    run(flags, main)
