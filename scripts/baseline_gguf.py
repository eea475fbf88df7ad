"""Quantize a GGUF file by one of llama.cpp's own recipes (f16, q4_k_m ...), to compare plans with."""

import os
import time

from bitplan.command import count, parser, run
from bitplan.flag_files import input_file, output_file


def main(args) -> None:
    from bitplan.export.llama_quantize import quantize_by_recipe
    from bitplan.provenance import write_provenance

    started = time.monotonic()
    quantize_by_recipe(args.base, args.output, args.recipe, args.threads)
    write_provenance(args.output, started)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--base", type=input_file, required=True, help="the model as GGUF in full precision")
    flags.add_argument("--recipe", default="q4_k_m", help="llama.cpp's name of the recipe, e.g. f16, q4_k_m, q8_0")
    flags.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="processor threads")
    flags.add_argument("--output", type=output_file, required=True, help="GGUF file to write")
    run(flags, main)
