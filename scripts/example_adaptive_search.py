"""Run the three presets of the adaptive search, conservative, balanced and aggressive, on a model.

For example:

    python scripts/example_adaptive_search.py --model demo/model
"""

from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import output_folder
from bitplan.cli.parser import add_calibration_window_flags, add_compute_flags, add_text_flag, parser, run

PRESETS = {
    "conservative": {"ppl_threshold": 0.05, "target_avg_bits": 10.0, "step_size": 0.3},
    "balanced": {"ppl_threshold": 0.1, "target_avg_bits": 8.0, "step_size": 0.5},
    "aggressive": {"ppl_threshold": 0.2, "target_avg_bits": 6.0, "step_size": 0.8},
}


def main(args) -> None:
    """Print the plan of each preset. Raises `UserError`."""
    from bitplan.core.tables import Column, text_table
    from bitplan.demo import DEMO
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.plan import LayerPlan, write_config
    from bitplan.reference.opening import open_reference, prepare_model
    from bitplan.search.adaptive.algorithm import AdaptiveSettings
    from bitplan.search.adaptive.run import alphas_of, search, token_perplexity

    model = prepare_model(args.model or DEMO / "model", args.dtype, args.device, args.threads, args.bos)
    alphas = alphas_of(model, None, "hill")
    calibration = open_reference(args.calibration, model, args.length, args.sequences)
    measure = token_perplexity(model, calibration, QuantizedWeights())
    rows = []
    for name, preset in PRESETS.items():
        plan = search(model, alphas, measure, AdaptiveSettings(**preset))
        write_config(args.output / f"{name}_config.json", plan, LayerPlan(), model.info)
        rows.append({"preset": name, **plan.summary})
    columns = (
        Column("preset", "preset"),
        Column("avg_bits", "bits", "{:.3f}"),
        Column("target_avg_bits", "target", "{:.1f}"),
        Column("ppl_increase", "PPL", "{:+.2%}"),
    )
    print(text_table(rows, columns))


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_compute_flags(flags)
    add_calibration_window_flags(flags)
    flags.add_argument("--model", type=Path, help="folder of a checkpoint; the bundled model by default")
    add_text_flag(flags, "--calibration", "calibration.txt", "calibration text")
    flags.add_argument(
        "--output", type=output_folder, default=Path("results/example"), help="folder for the three configurations"
    )
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
