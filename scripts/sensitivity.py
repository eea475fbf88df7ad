"""Measure for every layer and format what it does to the layer's output and, with --anchors or --metric gradient, to the model's: KL of
one layer alone.

For example:

    python scripts/sensitivity.py --model demo/model --palette q3_k q4_k q6_k --metric gradient --draws 4 --output sensitivity.tsv
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import (
    add_calibration_window_flags,
    add_compute_flags,
    add_imatrix_flag,
    add_model_flag,
    add_text_flag,
    parser,
    run,
)
from bitplan.config.flag_types import share, size
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import SensitivitySettings


def main(args) -> None:
    """Write the table of sensitivities. Raises `UserError`."""
    from bitplan.core.errors import user_error
    from bitplan.core.provenance import write_provenance
    from bitplan.formats.importance import check_importance
    from bitplan.formats.table import get_format
    from bitplan.plans.fitting import warn_of_formats
    from bitplan.reference.opening import prepare_model
    from bitplan.sensitivity.candidates import MeasureSettings
    from bitplan.sensitivity.local_errors import SensitivitySettings as LocalSettings
    from bitplan.sensitivity.local_errors import activation_choices, choice_named
    from bitplan.sensitivity.local_run import GAUSSIAN
    from bitplan.sensitivity.run import check_flags, make_table, tell_agreement

    started = time.monotonic()
    palette = [choice_named(name) for name in args.palette]
    choices = tuple(dict.fromkeys((*activation_choices(args.activation_scope, args.group_size), *palette)))
    alphas = () if args.no_smoothing else tuple(args.smooth_alpha)
    settings = LocalSettings(choices, alphas, not args.norms_only, args.tokens)
    outside = tuple(get_format(name).name for name in args.embeddings or ())
    draws = args.draws if args.metric == "gradient" else None
    if outside and args.anchors is None and draws is None:
        hint = "Give --anchors 1, 2 or all, or --metric gradient"
        raise user_error(
            "SENSITIVITY-NEEDS-KL",
            "--embeddings",
            "is measured by KL only, which needs --anchors or --metric gradient",
            hint,
        )
    measure = MeasureSettings(args.anchors, args.memory_limit, args.shard, args.fisher, outside, draws, args.rounding)
    source = GAUSSIAN if args.random else args.calibration
    check_flags(measure, source)
    check_importance([*args.palette, *outside], args.imatrix is not None)
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    warn_of_formats([choice.wq for choice in palette], model.info, outside)
    files = (args.layer_stats, args.output, args.imatrix)
    made = make_table(model, source, args.length, args.sequences, settings, measure, *files)
    write_provenance(args.output, started, block_forwards=made.block_forwards, block_forward_tokens=made.tokens)
    inputs = "Gaussian inputs" if source == GAUSSIAN else "the calibration text"
    layers = len({row["layer"] for row in made.rows})
    print(f"{len(made.rows)} rows for {layers} layers on {inputs}: {args.output}")
    tell_agreement(args.output, args.report)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_calibration_window_flags(flags)
    add_text_flag(
        flags,
        "--calibration",
        "calibration.txt",
        "text, or one saved by layer_stats.py, or `random` for Gaussian inputs",
        kind=str,
        wanted=lambda args: not args.random,
    )
    palette = (
        "candidates to measure besides: formats of weights, or weights/inputs as mxfp4/mxfp8 and int4_g128/int8_token"
    )
    add_settings_flags(
        flags,
        SensitivitySettings,
        random={"help": "the same as --calibration random"},
        palette={"help": palette},
        memory_limit={"type": size},
        metric={"choices": ("measured", "gradient"), "default": "measured"},
        shards={"type": share, "default": "1/1", "help": "a share of the layers; merge_sensitivity.py joins them"},
    )
    flags.add_argument("--no-smoothing", action="store_true", help="measure without SmoothQuant")
    flags.add_argument("--norms-only", action="store_true", help="smooth only what can be folded into a norm")
    flags.add_argument(
        "--layer-stats", type=input_file, help="layer_stats.tsv, for the column alpha; computed when absent"
    )
    add_imatrix_flag(flags)
    flags.add_argument("--report", type=output_file, help="JSON of what agrees with measured KL to write")
    flags.add_argument(
        "--output", type=output_file, required=True, help="sensitivity.tsv to write; smoothing factors go next to it"
    )
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
