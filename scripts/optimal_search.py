"""Find the plan of least damage for average bits or a file size: exactly, from the KL of each layer alone, then corrected and refined on fresh text."""

import time
from argparse import BooleanOptionalAction

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import (
    add_calibration_window_flags,
    add_compute_flags,
    add_model_flag,
    add_text_flag,
    count,
    number,
    parser,
    positive,
    run,
    size,
)


def main(args) -> None:
    from bitplan.core.provenance import write_provenance
    from bitplan.plans.plan import LayerPlan, write_config, write_plan
    from bitplan.search.optimal.command import budgets_of, checked_outputs, searched
    from bitplan.search.optimal.run import print_optimal, summary_of

    started = time.monotonic()
    outputs = checked_outputs(args)
    search, settings = searched(args)
    info = search.model.info
    for target, budget in budgets_of(search, args.target_avg_bits, args.same_size_as):
        plan, figures = search.run(budget)
        summary = summary_of(plan, info, settings, target, figures)
        made = type(plan)(plan.layers, summary)
        for write, path in zip((write_config, write_plan), outputs(target), strict=True):
            if path is not None:
                write(path, made, LayerPlan(), info, "search_summary")
        print_optimal(made, info, summary)
    write_provenance(next(path for path in outputs(target) if path is not None), started)
    search.kept.remove()


if __name__ == "__main__":
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_calibration_window_flags(flags)
    flags.add_argument("--target-avg-bits", type=positive, nargs="+", action="extend",
                       help="bound on average bits over all parameters; several give several plans")  # fmt: skip
    flags.add_argument(
        "--same-size-as", type=input_file, help="GGUF file of the same model whose size is the bound instead"
    )
    flags.add_argument("--palette", nargs="+", action="extend",
                       help="weight formats to choose from; the GGUF types q2_k to q8_0 by default")  # fmt: skip
    flags.add_argument("--sensitivity", type=input_file, help="table with KL; made when absent")
    flags.add_argument("--metric", choices=("measured", "gradient"), default="gradient",
                       help="where KL comes from without --sensitivity: measured, or from a few backward passes")  # fmt: skip
    flags.add_argument(
        "--draws", type=count, default=16, help="draws of labels for each window, with --metric gradient"
    )
    add_text_flag(
        flags,
        "--calibration",
        "calibration.txt",
        "text that was measured on, or a saved one",
        wanted=lambda args: args.correct or args.refine or args.sensitivity is None,
    )
    flags.add_argument(
        "--validation", type=input_file, help="saved text that the search has not seen, to accept steps on"
    )
    flags.add_argument(
        "--imatrix", type=input_file, help="importance matrix for GGUF types: the safetensors beside layer_stats.tsv"
    )
    flags.add_argument("--groups", choices=("experts", "fusion", "none"),
                       help="layers that share a format; experts for GGUF types, fusion groups for others")  # fmt: skip
    flags.add_argument(
        "--correct", action=BooleanOptionalAction, default=True, help="measure steps around the solution in place"
    )
    flags.add_argument(
        "--refine", action=BooleanOptionalAction, default=False, help="evolutionary refinement at fixed size"
    )
    flags.add_argument("--swaps", type=count, default=24, help="steps that the correction measures")
    flags.add_argument("--seed", type=number(0, kind=int), default=0, help="seed of the refinement")
    flags.add_argument(
        "--memory-limit", type=size, default="4GB", help="for quantized weights, and states while measuring"
    )
    flags.add_argument("--output-config", type=output_file, help="config.json to write; {target} in it is the target")
    flags.add_argument("--output-plan", type=output_file, help="plan.json to write; {target} in it is the target")
    run(flags, main)
