"""Measure for every layer and format what it does to the layer's output and, with --anchors or --metric gradient, to the model's: KL of
one layer alone."""

import time

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import (
    add_calibration_window_flags,
    add_compute_flags,
    add_model_flag,
    add_text_flag,
    count,
    number,
    parser,
    run,
    share,
    size,
)


def main(args) -> None:
    from bitplan.core.errors import user_error
    from bitplan.core.provenance import write_provenance
    from bitplan.formats.table import get_format
    from bitplan.plans.fitting import warn_of_formats
    from bitplan.reference.opening import prepare_model
    from bitplan.sensitivity.candidates import MeasureSettings
    from bitplan.sensitivity.local_errors import SensitivitySettings, activation_choices, choice_named
    from bitplan.sensitivity.local_run import GAUSSIAN
    from bitplan.sensitivity.run import check_flags, make_table, tell_agreement

    started = time.monotonic()
    palette = [choice_named(name) for name in args.palette or ()]
    choices = tuple(dict.fromkeys((*activation_choices(args.activation_scope, args.group_size), *palette)))
    alphas = tuple(args.smooth_alpha) if args.smooth_alpha is not None else (0.5,)
    settings = SensitivitySettings(choices, () if args.no_smoothing else alphas, not args.norms_only, args.tokens)
    outside = tuple(get_format(name).name for name in args.embeddings or ())
    draws = args.draws if args.metric == "gradient" else None
    if outside and args.anchors is None and draws is None:
        hint = "Give --anchors 1, 2 or all, or --metric gradient"
        raise user_error("--embeddings", "is for KL, which --anchors and --metric gradient ask for", hint)
    measure = MeasureSettings(args.anchors, args.memory_limit, args.shard, args.fisher, outside, draws)
    source = GAUSSIAN if args.random else args.calibration
    check_flags(measure, source)
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    warn_of_formats([choice.wq for choice in palette], model.info, outside)
    files = (args.layer_stats, args.output, args.imatrix)
    made = make_table(model, source, args.length, args.sequences, settings, measure, *files)
    write_provenance(args.output, started, block_forwards=made.block_forwards, block_forward_tokens=made.tokens)
    inputs = "Gaussian inputs" if source == GAUSSIAN else "the calibration text"
    layers = len({row["layer"] for row in made.rows})
    print(f"{len(made.rows)} rows for {layers} layers on {inputs}: {args.output}")
    tell_agreement(args.output, args.report)


DRAWS = 16


if __name__ == "__main__":
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
    flags.add_argument("--random", action="store_true", help="the same as --calibration random")
    flags.add_argument(
        "--palette",
        nargs="+",
        action="extend",
        help="candidates to measure besides: formats of weights, or weights/inputs as mxfp4/mxfp8 and int4_g128/int8_token",
    )
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
        "--metric",
        choices=("measured", "gradient"),
        default="measured",
        help="where KL comes from: measured as --anchors says, or from a few backward passes for all that --anchors do not measure",
    )
    flags.add_argument(
        "--draws", type=count, default=DRAWS, help="draws of labels for each window, with --metric gradient"
    )
    flags.add_argument(
        "--anchors",
        choices=("1", "2", "all"),
        help="formats of each layer whose KL is measured; of the others it is fitted",
    )
    flags.add_argument(
        "--embeddings",
        nargs="+",
        action="extend",
        help="formats in which the token embedding and the output matrix are measured too, with --anchors",
    )
    flags.add_argument(
        "--memory-limit", type=size, default="4GB", help="for the hidden states of candidates, with --anchors"
    )
    flags.add_argument("--fisher", action="store_true", help="also the Fisher score, from one backward pass")
    flags.add_argument(
        "--shard", type=share, default="1/1", help="a share of the layers; merge_sensitivity.py joins them"
    )
    flags.add_argument(
        "--layer-stats", type=input_file, help="layer_stats.tsv, for the column alpha; found anew when absent"
    )
    flags.add_argument(
        "--imatrix", type=input_file, help="importance matrix for GGUF types: the safetensors beside layer_stats.tsv"
    )
    flags.add_argument("--report", type=output_file, help="JSON of what agrees with measured KL to write")
    flags.add_argument(
        "--output", type=output_file, required=True, help="sensitivity.tsv to write; smoothing factors stand beside it"
    )
    run(flags, main)
