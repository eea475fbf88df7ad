"""Write a model as GGUF in its own precision, with llama.cpp's converter."""

import time

from bitplan.cli.inputs import output_file
from bitplan.cli.parser import add_model_flag, parser, run


def main(args) -> None:
    from bitplan.core.provenance import write_provenance
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.runtimes.gguf.convert import convert

    started = time.monotonic()
    convert(Checkpoint.open(args.model), args.output, args.type)
    write_provenance(args.output, started)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--type", choices=("f32", "f16", "bf16"), help="precision; the checkpoint's own by default")
    flags.add_argument("--output", type=output_file, required=True, help="GGUF file to write")
    run(flags, main)
