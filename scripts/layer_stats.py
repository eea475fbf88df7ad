"""Statistics of every layer: spectrum and moments of the weights, size of the activations on calibration text.

For example:

    python scripts/layer_stats.py --model demo/model --output layer_stats.tsv
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import output_file
from bitplan.cli.parser import (
    add_calibration_window_flags,
    add_compute_flags,
    add_model_flag,
    add_text_flag,
    parser,
    run,
)


def main(args) -> None:
    """Write the table of statistics, and the importance matrix where it is asked for. Raises `UserError`."""
    from bitplan.cli.inputs import clashes, refuse
    from bitplan.core.provenance import write_provenance
    from bitplan.core.resume import PartialResults, WalkProgress, digest_of
    from bitplan.reference.opening import prepare_model
    from bitplan.reference.reference import reference_of_text, save_reference
    from bitplan.reference.text import cut_text
    from bitplan.statistics.layer_stats import measure_layers, write_statistics

    started = time.monotonic()
    importance = args.importance or args.output.with_suffix(".safetensors")
    outputs = [path for path in (args.output, importance, args.save_text) if path]
    refuse(clashes(outputs, [args.calibration], args.model))
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    model.model.check_length(args.length)
    cut = cut_text(model.checkpoint.folder, args.calibration, args.length, args.sequences, bos=args.bos)
    tokens = cut.tokens
    digest = digest_of({**model.facts, "tokens": tokens, "shape": tuple(tokens.shape)})
    with PartialResults.open(args.output, digest).remove_on_user_error() as kept:
        rows, inputs, hidden = measure_layers(model.model, model.info, tokens, WalkProgress(kept))
        write_statistics(args.output, importance, rows, inputs)
        if args.save_text:
            made = reference_of_text(model.checkpoint, cut, hidden, model.dtype)
            save_reference(args.save_text, made, model.info.fingerprint, args.calibration)
    kept.remove()
    write_provenance(args.output, started, bos=cut.bos, block_forwards=model.model.block_forwards)
    print(f"{len(rows)} layers on {tokens.numel()} tokens: {args.output}, {importance}")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_calibration_window_flags(flags)
    add_text_flag(flags, "--calibration", "calibration.txt", "calibration text")
    flags.add_argument("--output", type=output_file, required=True, help="layer_stats.tsv to write")
    flags.add_argument("--importance", type=output_file, help="importance matrix to write; beside --output by default")
    flags.add_argument(
        "--save-text", type=output_file, help="also write tokens and final hidden states on the calibration text"
    )
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
