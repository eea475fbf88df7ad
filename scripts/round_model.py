"""Round the weights of a plan with error feedback: later columns make up for the errors of earlier ones, in the same number of bytes."""

import time

from bitplan.cli.inputs import input_file, output_folder
from bitplan.cli.parser import add_compute_flags, add_model_flag, add_window_flags, count, number, parser, run

# Those of bitplan.rounding.layer.ROUNDINGS, which is not loaded for --help.
ROUNDINGS = ("nearest", "feedback", "tuned")


def main(args) -> None:
    from bitplan.core.files import write_table
    from bitplan.core.provenance import write_provenance
    from bitplan.plans.plan import LayerPlan, write_plan
    from bitplan.plans.rounded import FOLDER
    from bitplan.plans.torch_config import read_any_plan
    from bitplan.reference.datasets import calibration_windows
    from bitplan.reference.opening import prepare_model
    from bitplan.rounding.model import COLUMNS, RoundingSettings, round_plan
    from bitplan.rounding.report import check_output, print_rounding
    from bitplan.rounding.tuning import TuningSettings

    started = time.monotonic()
    check_output(args.output, args.plan)
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    plan = read_any_plan(args.plan, model.info)
    tokens = calibration_windows(model, args.calibration, args.length, args.sequences, args.seed)
    tuning = TuningSettings(args.steps, args.tokens_per_step, args.seed)
    settings = RoundingSettings(args.rounding, args.damping, args.descents, tuning)
    made, rows = round_plan(model.model, model.info, plan, tokens, settings, args.output / FOLDER, model.dtype)
    write_plan(args.output / "plan.json", made, LayerPlan(), model.info, "search_summary")
    write_table(args.output / "rounding.tsv", rows, COLUMNS)
    write_provenance(args.output / "plan.json", started, block_forwards=model.model.block_forwards)
    print_rounding(args.output, rows)


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_window_flags(flags, sequences=128)
    flags.add_argument(
        "--plan", type=input_file, required=True, help="config.json or plan.json whose layers are rounded"
    )
    flags.add_argument("--calibration", required=True,
                       help="calibration text, one saved by layer_stats.py, or c4, wikitext2 or ptb")  # fmt: skip
    flags.add_argument("--seed", type=number(0, kind=int), default=0, help="which windows are drawn of a longer text")
    flags.add_argument("--rounding", choices=ROUNDINGS, default="feedback", help="how weights are rounded")
    flags.add_argument("--damping", type=number(0.0), default=0.01,
                       help="added to the diagonal of each layer's second moments, in shares of its mean")  # fmt: skip
    flags.add_argument("--descents", type=number(0, kind=int), default=2,
                       help="sweeps of coordinate descent over the codes after the one with error feedback")  # fmt: skip
    flags.add_argument("--steps", type=count, default=50, help="steps that tuning takes on each block")
    flags.add_argument("--tokens-per-step", type=count, default=2048, help="calibration tokens that a step looks at")
    flags.add_argument("--output", type=output_folder, required=True,
                       help="folder for plan.json, the codes and rounding.tsv; a run that was stopped goes on there")  # fmt: skip
    run(flags, main)
