"""The optimal formats of all layers for a size, or for a limit on the sum of KL, from any table of sensitivities.

For example:

    python scripts/allocate_bits.py --sensitivity sensitivity.tsv --target-avg-bits 3.5 4 4.5 --output front.json --figure front.svg
    python scripts/allocate_bits.py --sensitivity sensitivity.tsv --max-kld 0.01 --protect '*.down_proj=q6_k' --output front.json
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import parser, run
from bitplan.config.flag_types import number, positive
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import ExportSettings


def main(args) -> None:
    """Write the plan of every target, its lines for llama-quantize and the figure of the front. Raises `UserError`."""
    from bitplan.cli.inputs import clashes, refuse
    from bitplan.core.errors import user_error
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.search.allocation.constraints import Constraints, rule_of
    from bitplan.search.allocation.groups import group_file, layer_groups
    from bitplan.search.allocation.problem import allocate, allocation_problem
    from bitplan.search.allocation.report import digest, front, printed, targets_of
    from bitplan.search.allocation.tensor_types import type_files, write_type_files
    from bitplan.sensitivity.table import of_palette, read_sensitivity_table

    started = time.monotonic()
    targets = targets_of(args.target_avg_bits or (), args.target_bytes or (), args.max_kld or ())
    if not targets:
        raise user_error(
            "ALLOCATE-NO-TARGET", "targets", "no target is given", "Give --target-avg-bits, --target-bytes or --max-kld"
        )
    files = type_files(args.tensor_types, targets) if args.tensor_types else []
    grouped = [path for path in map(group_file, args.groups or ()) if path]
    outputs = [path for path in (args.output, args.figure, *files) if path]
    refuse(clashes(outputs, [path for path in (args.sensitivity, args.base, *grouped) if path]))
    palette = tuple(args.palette or ())
    read = read_sensitivity_table(args.sensitivity, palette)
    table = of_palette(read, palette) if palette else read
    constraints = Constraints(
        layer_groups(args.groups or (), table.layers),
        [rule_of(text, "--protect") for text in args.protect or ()],
        [rule_of(text, "--floor") for text in args.floor or ()],
    )
    problem = allocation_problem(table, constraints)
    made = allocate(problem, targets)
    commands = list(write_type_files(files, made, args.base, args.unquantized)) if files else []
    if args.figure:
        from bitplan.search.allocation.figure import draw_front

        draw_front(problem, made, args.figure, "Optimal allocation")
    write_json(args.output, front(problem, constraints, made, {"sensitivity_sha256": digest(args.sensitivity)}))
    write_provenance(args.output, started)
    print("\n".join([*printed(problem, constraints, made), *commands]))


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    lists = {"nargs": "+", "action": "extend"}
    flags.add_argument(
        "--sensitivity", type=input_file, required=True, help="table (CSV or TSV): layer, params, format, bytes, kld"
    )
    flags.add_argument(
        "--palette",
        **lists,
        help="formats to choose from, or weights/inputs as mxfp4/mxfp8; all of weights alone by default",
    )
    flags.add_argument(
        "--target-avg-bits",
        type=positive,
        **lists,
        help="lowest KL within 8 x bytes / params over the table's layers",
    )
    flags.add_argument("--target-bytes", type=number(1), **lists, help="lowest KL within a size of all layers in bytes")
    flags.add_argument("--max-kld", type=number(0.0), **lists, help="fewest bytes within a sum of KL in nats")
    flags.add_argument(
        "--groups", **lists, help="layers that share a format: a table (layer, group), a model.json, or PATTERN,PATTERN"
    )
    flags.add_argument(
        "--protect",
        **lists,
        metavar="PATTERN=FORMAT",
        help="layers in this format, or with PATTERN alone in their largest",
    )
    flags.add_argument(
        "--floor",
        **lists,
        metavar="PATTERN=FORMAT",
        help="layers with no fewer bits than this format; also category:PATTERN",
    )
    flags.add_argument(
        "--output", type=output_file, required=True, help="front.json to write: the plan of every target"
    )
    lines = "file to write for llama-quantize --tensor-type-file; {target} in its name is the target"
    flags.add_argument("--tensor-types", type=output_file, help=lines)
    base = "GGUF file of the model, that --tensor-types has a line for each matrix and may name the checkpoint's layers"
    flags.add_argument("--base", type=input_file, help=base)
    add_settings_flags(flags, ExportSettings, only=("unquantized",))
    flags.add_argument("--figure", type=output_file, help="SVG of KL against average bits to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
