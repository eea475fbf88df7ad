"""Find the plan with the lowest KL for average bits, a recipe's size or a file's: exactly, from the KL of each layer alone, then corrected and refined on fresh text.

For example:

    python scripts/optimal_search.py --model demo/model --target-avg-bits 4 5 --output-plan 'plans/{target}.json'
    python scripts/optimal_search.py --model demo/model --same-size-as Q4_K_M.gguf --output-plan plan.json
    python scripts/optimal_search.py --model demo/model --max-size 1MB --runtimes gguf --base base.gguf --output-plan plan.json
"""

import time
from argparse import ArgumentParser
from dataclasses import replace

from bitplan.cli.inputs import input_file, output_file
from bitplan.cli.parser import (
    add_calibration_window_flags,
    add_compute_flags,
    add_imatrix_flag,
    add_model_flag,
    add_text_flag,
    parser,
    run,
)
from bitplan.config.flag_types import ListAction, size, size_text
from bitplan.config.flags import add_settings_flags
from bitplan.config.settings import SensitivitySettings
from bitplan.search.optimal.settings import OptimalPlan


def main(args) -> None:
    """Write the plan of each target. Raises `UserError`."""
    from bitplan.core.provenance import write_provenance
    from bitplan.plans.plan import LayerPlan, write_config, write_plan
    from bitplan.search.optimal.command import budgets_of, checked_outputs, searched
    from bitplan.search.optimal.run import print_optimal, summary_of

    started = time.monotonic()
    outputs = checked_outputs(args)
    search, settings = searched(args)
    info, limit = search.model.info, {"max_size": args.max_size} if args.max_size else {}
    for target, budget in budgets_of(search, args):
        plan, figures = search.run(budget)
        summary = summary_of(plan, info, settings, target, {**limit, **figures})
        made = replace(plan, summary=summary)
        for write, path in zip((write_config, write_plan), outputs(target), strict=True):
            if path is not None:
                write(path, made, LayerPlan(), info)
        print_optimal(made, info, summary)
    write_provenance(next(path for path in outputs(target) if path is not None), started)
    search.kept.remove()


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_compute_flags(flags)
    add_calibration_window_flags(flags)
    several = {"nargs": "+", "action": ListAction}
    told = "bound on average bits over all parameters; several give several plans"
    size_of = {
        "type": input_file,
        "choices": None,
        "help": "GGUF file of the same model whose size is the bound instead",
    }
    limit = {"type": size_text, "help": "largest size of the file, or folder, of each of --runtimes, as 4GB or 500MB"}
    bits = {**several, "help": told}
    add_settings_flags(flags, OptimalPlan, target_avg_bits=bits, same_size_as=size_of, max_size=limit)
    flags.add_argument("--base", type=input_file, help="the model as GGUF in full precision, for --max-size of a GGUF")
    runtimes = "runtimes that are to hold the plan: choices that one of them refuses are left out"
    flags.add_argument("--runtimes", **several, help=runtimes)
    flags.add_argument("--sensitivity", type=input_file, help="table with KL; made when absent")
    told = "where KL comes from without --sensitivity: measured, or from a few backward passes"
    memory = {"type": size, "help": "memory for quantized weights, and for hidden states while measuring"}
    some = ("metric", "draws", "memory_limit")
    add_settings_flags(
        flags,
        SensitivitySettings,
        some,
        metric={"help": told, "choices": ("measured", "gradient"), "default": "gradient"},
        memory_limit=memory,
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
    add_imatrix_flag(flags)
    flags.add_argument("--output-config", type=output_file, help="config.json to write; {target} in it is the target")
    flags.add_argument("--output-plan", type=output_file, help="plan.json to write; {target} in it is the target")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
