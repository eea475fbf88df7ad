"""Statistics of every layer: spectrum and moments of the weights, size of the activations on calibration text."""

import time

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_compute_flags, add_model_flag, add_window_flags, parser, run


def main(args) -> None:
    from bitplan.cli.inputs import clashes, refuse
    from bitplan.core.provenance import write_provenance
    from bitplan.core.resume import Kept, KeptWalk, digest_of
    from bitplan.demo import DEMO
    from bitplan.reference.opening import opened
    from bitplan.reference.reference import save_teacher, teacher_from
    from bitplan.reference.text import windows
    from bitplan.statistics.layer_stats import measure_layers, write_statistics

    started = time.monotonic()
    importance = args.importance or args.output.with_suffix(".safetensors")
    outputs = [path for path in (args.output, importance, args.save_text) if path]
    refuse(clashes(outputs, [args.calibration] if args.calibration else [], args.model))
    model = opened(args.model, args.dtype, args.device, args.threads)
    text = args.calibration or DEMO / "calibration.txt"
    tokens = windows(model.checkpoint.folder, text, args.length, args.sequences)
    digest = digest_of({**model.facts, "tokens": tokens, "shape": tuple(tokens.shape)})
    with Kept.beside(args.output, digest).unless_worthless() as kept:
        rows, inputs, hidden = measure_layers(model.model, model.info, tokens, KeptWalk(kept))
        write_statistics(args.output, importance, rows, inputs)
        if args.save_text:
            made = teacher_from(model.checkpoint, tokens, hidden, args.dtype)
            save_teacher(args.save_text, made, model.info.fingerprint, text)
    kept.remove()
    write_provenance(args.output, started, block_forwards=model.model.block_forwards)
    print(f"{len(rows)} layers on {tokens.numel()} tokens: {args.output}, {importance}")


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_window_flags(flags)
    flags.add_argument("--calibration", type=input_file, help="calibration text; the bundled one by default")
    flags.add_argument("--output", type=output_file, required=True, help="layer_stats.tsv to write")
    flags.add_argument("--importance", type=output_file, help="importance matrix to write; beside --output by default")
    flags.add_argument(
        "--save-text", type=output_file, help="also write tokens and final hidden states on the calibration text"
    )
    run(flags, main)
