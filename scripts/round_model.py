"""Round the weights of a plan with error feedback: later columns make up for the errors of earlier ones, in the same number of bytes.

For example:

    python scripts/round_model.py --model demo/model --plan plan.json --calibration demo/calibration.txt --output rounded-plan
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import input_file, input_folder, output_folder
from bitplan.cli.parser import add_compute_flags, add_model_flag, add_window_flags, parser, run
from bitplan.config.flag_types import number
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import RoundingSettings


def main(args) -> None:
    """Write the plan with its rounded weights, and a row of figures for each layer. Raises `UserError`."""
    from bitplan.core.files import write_table
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info
    from bitplan.plans.plan import LayerPlan, write_plan
    from bitplan.plans.rounded import FOLDER
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.reference.datasets import calibration_windows
    from bitplan.reference.opening import prepare_model
    from bitplan.rounding.candidates import FOLDER as CANDIDATES
    from bitplan.rounding.candidates import take_candidates
    from bitplan.rounding.model import COLUMNS, ModelRounding, round_plan
    from bitplan.rounding.report import check_output, check_source, print_rounding
    from bitplan.rounding.tuning import TuningSettings

    started, folder, walked = time.monotonic(), args.output / FOLDER, {}
    check_output(args.output, args.plan)
    check_source(args.candidates, args.rounding)
    if args.candidates is not None:
        info = model_info(args.model)
        made, rows = take_candidates(read_any_plan(args.plan, info), info, args.candidates / CANDIDATES, folder)
    else:
        model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
        info, plan = model.info, read_any_plan(args.plan, model.info)
        tokens = calibration_windows(model, args.calibration, args.length, args.sequences, args.seed)
        tuning = TuningSettings(args.steps, args.tokens_per_step, args.seed)
        how = {"damping": args.damping, "descents": args.descents, "reference_share": args.reference_share}
        settings = ModelRounding(args.rounding, **how, tuning=tuning)
        made, rows = round_plan(model.model, info, plan, tokens, settings, folder, model.dtype)
        walked["block_forwards"] = model.model.block_forwards
    write_plan(args.output / "plan.json", made, LayerPlan(), info)
    write_table(args.output / "rounding.tsv", rows, COLUMNS)
    write_provenance(args.output / "plan.json", started, **walked)
    print_rounding(args.output, rows)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_window_flags(flags, sequences=128)
    flags.add_argument(
        "--plan", type=input_file, required=True, help="config.json or plan.json whose layers are rounded"
    )
    source = flags.add_mutually_exclusive_group(required=True)
    source.add_argument("--calibration", help="calibration text, one saved by layer_stats.py, or c4, wikitext2 or ptb")
    source.add_argument("--candidates", type=input_folder,
                        help="database of round_candidates.py: take its codes instead of rounding")  # fmt: skip
    flags.add_argument("--seed", type=number(0, kind=int), default=0, help="which windows are drawn of a longer text")
    add_settings_flags(flags, RoundingSettings, default={"default": "feedback", "help": "how weights are rounded"})
    flags.add_argument("--output", type=output_folder, required=True,
                       help="folder for plan.json, the codes and rounding.tsv; an interrupted run resumes there")  # fmt: skip
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
