"""Round every layer in each format of a palette with error feedback, into a database on disk; round_model.py takes the codes of plans from it.

For example:

    python scripts/round_candidates.py --model demo/model --palette q3_k q4_k --calibration demo/calibration.txt --output candidates
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import output_folder
from bitplan.cli.parser import add_compute_flags, add_model_flag, add_window_flags, parser, run
from bitplan.config.flag_types import number
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import RoundingSettings


def main(args) -> None:
    """Say how large the database will be, then write it, and a row of figures for each candidate. Raises `UserError`."""
    from bitplan.core.files import write_table
    from bitplan.core.provenance import write_provenance
    from bitplan.formats.table import get_format
    from bitplan.plans.layer_plan import LayerPlan
    from bitplan.reference.datasets import calibration_windows
    from bitplan.reference.opening import prepare_model
    from bitplan.rounding.candidates import CANDIDATE, FOLDER, check_room, database_bytes, round_candidates
    from bitplan.rounding.model import COLUMNS, ModelRounding

    started = time.monotonic()
    palette = [LayerPlan(get_format(name).name, group_size=args.group_size) for name in args.palette]
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    size = database_bytes(model.info, palette)
    print(f"{args.output}: {size / 1e9:.3g} GB for {len(model.info.quantizable)} layers in {len(palette)} formats")
    if args.dry_run:
        return
    check_room(args.output, size)
    tokens = calibration_windows(model, args.calibration, args.length, args.sequences, args.seed)
    settings = ModelRounding(damping=args.damping, descents=args.descents)
    rows = round_candidates(model.model, model.info, palette, tokens, settings, args.output / FOLDER)
    write_table(args.output / "rounding.tsv", rows, (CANDIDATE, *COLUMNS))
    write_provenance(args.output / "rounding.tsv", started, block_forwards=model.model.block_forwards)
    print(f"{args.output}: {len(rows)} candidates")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_window_flags(flags, sequences=128)
    flags.add_argument("--calibration", required=True,
                       help="calibration text, one saved by layer_stats.py, or c4, wikitext2 or ptb")  # fmt: skip
    flags.add_argument("--seed", type=number(0, kind=int), default=0, help="which windows are drawn of a longer text")
    flags.add_argument("--palette", nargs="+", required=True, metavar="FORMAT", help="formats of weights")
    flags.add_argument("--group-size", type=number(1, kind=int), help="values per block of formats without a fixed one")
    add_settings_flags(flags, RoundingSettings, only=("damping", "descents"))
    flags.add_argument("--dry-run", action="store_true", help="only say how large the database will be")
    flags.add_argument("--output", type=output_folder, required=True,
                       help="folder of the database; an interrupted run resumes there")  # fmt: skip
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
