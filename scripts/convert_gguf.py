"""Write a model as GGUF in its own precision, with llama.cpp's converter.

For example:

    python scripts/convert_gguf.py --model demo/model --output base.gguf
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import output_file
from bitplan.cli.parser import add_base_kl_flag, add_model_flag, parser, run
from bitplan.config.flag_types import ALL_CORES, count, number


def main(args) -> None:
    """Write the GGUF file and check what it computes. Raises `UserError`."""
    from bitplan.core.provenance import write_provenance
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.runtimes.gguf.base_check import base_checker
    from bitplan.runtimes.gguf.convert import convert

    started = time.monotonic()
    checkpoint = Checkpoint.open(args.model)
    check = None if args.no_check else base_checker(checkpoint, args.threads, args.allow_base_kl, args.length)
    convert(checkpoint, args.output, args.type, args.name, check)
    write_provenance(args.output, started)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--type", choices=("f32", "f16", "bf16"), help="precision; the checkpoint's own by default")
    flags.add_argument("--name", help="name of the model in the file; the folder's by default")
    flags.add_argument("--no-check", action="store_true", help="do not check that llama.cpp computes the same model")
    flags.add_argument("--length", type=number(2, kind=int), default=256, help="tokens per window of that check")
    add_base_kl_flag(flags)
    flags.add_argument("--threads", type=count, default=ALL_CORES, help="processor threads of the check")
    flags.add_argument("--output", type=output_file, required=True, help="GGUF file to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
