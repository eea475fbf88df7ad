"""Join the sensitivity tables of shards: the table that one run without --shard writes, byte for byte.

For example:

    python scripts/merge_sensitivity.py --model demo/model --tables shard-1.tsv shard-2.tsv --output sensitivity.tsv
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import add_model_flag, parser, run


def main(args) -> None:
    """Write the joined table. Raises `UserError`."""
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info
    from bitplan.sensitivity.measure import merged
    from bitplan.sensitivity.run import tell_agreement, write_sensitivity

    started = time.monotonic()
    rows, smoothing = merged(args.tables, model_info(args.model))
    write_sensitivity(args.output, rows, smoothing)
    write_provenance(args.output, started)
    print(f"{len(rows)} rows of {len(args.tables)} shards: {args.output}")
    tell_agreement(args.output, args.report)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument(
        "--tables", type=input_file, nargs="+", required=True, help="tables of scripts/sensitivity.py --shard"
    )
    flags.add_argument("--report", type=output_file, help="JSON of what agrees with measured KL to write")
    flags.add_argument("--output", type=output_file, required=True, help="sensitivity.tsv to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
