"""Save a text's tokens and the full-precision model's final hidden states, with which plans are compared.

For example:

    python scripts/teacher.py --model demo/model --text demo/evaluation.txt --output evaluation.safetensors
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_compute_flags, add_model_flag, add_window_flags, parser, run
from bitplan.config.flag_types import number


def main(args) -> None:
    """Write the tokens and hidden states. Raises `UserError`."""
    from bitplan.core.provenance import write_provenance
    from bitplan.reference.opening import prepare_model
    from bitplan.reference.reference import make_reference, save_reference

    started = time.monotonic()
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    made = make_reference(model.model, args.text, args.length, args.sequences, model.dtype, args.skip_tokens)
    save_reference(args.output, made, model.info.fingerprint, args.text)
    write_provenance(args.output, started, bos=made.bos, block_forwards=model.model.block_forwards)
    print(f"{made.tokens.shape[0]} windows of {made.tokens.shape[1]} tokens: {args.output}")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_window_flags(flags)
    flags.add_argument(
        "--skip-tokens", type=number(0, kind=int), default=0, help="tokens of the text to leave out at the beginning"
    )
    flags.add_argument("--text", type=input_file, required=True, help="UTF-8 text")
    flags.add_argument("--output", type=output_file, required=True, help="safetensors file to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
