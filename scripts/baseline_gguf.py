"""Quantize a GGUF file by one of llama.cpp's own recipes (f16, q4_k_m ...), to compare plans with.

For example:

    python scripts/baseline_gguf.py --base base.gguf --recipe q4_k_m --output q4_k_m.gguf
"""

import time
from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_imatrix_flag, add_threads_flag, parser, run


def main(args) -> None:
    """Write the file of a recipe. Raises `UserError`."""
    from bitplan.core.errors import user_error
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info
    from bitplan.runtimes.gguf.recipe_importance import importance_by_tensor
    from bitplan.runtimes.gguf.recipes import quantize_by_recipe
    from bitplan.statistics.importance import read_importance

    started = time.monotonic()
    if (args.imatrix is None) != (args.model is None):
        what = "must be given together: the importance matrix uses the names of the model's layers"
        raise user_error("GGUF-IMATRIX-WITHOUT-MODEL", "--imatrix and --model", what, "Give both or neither")
    importance = {}
    if args.imatrix:
        info = model_info(args.model)
        columns = {name: values.numpy() for name, values in read_importance(args.imatrix, info.quantizable).items()}
        importance = importance_by_tensor(args.base, info, columns)
    quantize_by_recipe(args.base, args.output, args.recipe, args.threads, importance=importance)
    write_provenance(args.output, started)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("--base", type=input_file, required=True, help="the model as GGUF in full precision")
    flags.add_argument("--recipe", default="q4_k_m", help="llama.cpp's name of the recipe, e.g. f16, q4_k_m, q8_0")
    add_imatrix_flag(flags)
    flags.add_argument("--model", type=Path, help="folder or model.json of the model, with --imatrix")
    add_threads_flag(flags)
    flags.add_argument("--output", type=output_file, required=True, help="GGUF file to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
