"""`bitplan export`: a plan that is there already as a file, or folder, of a runtime."""

import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from bitplan.cli.inputs import input_file, output_file, output_path
from bitplan.cli.parser import add_export_flags, parser
from bitplan.config.settings import CALIBRATION_WINDOWS
from bitplan.console.outputs import check_output
from bitplan.console.wishes import add_runtime_flag
from bitplan.core.errors import user_error
from bitplan.core.files import temporary_folder
from bitplan.core.places import scripts_folder
from bitplan.runtimes.registry import runtime_named
from bitplan.search.plan_settings import Rounding

ABOUT = """Write a plan for a runtime: one of `bitplan plan`, one of a comparison, or one written by hand. Weights are rounded to nearest, unless the
plan was rounded before or --rounding says otherwise; formats of GGUF are chosen without an importance matrix, unless --imatrix gives one.

For example:

    bitplan export plan.json --model ./model -o small.gguf
    bitplan export plan.json --model ./model --text my-text.txt --rounding feedback -o small.gguf
    bitplan export plan.json --model ./model --runtime mlx -o small-mlx
"""


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(ABOUT)
    flags.add_argument("plan", type=input_file, help="plan.json or config.json")
    add_export_flags(flags, plan=False)
    add_runtime_flag(flags)
    told = "the model as GGUF in full precision, which a GGUF starts from; made and checked when absent"
    flags.add_argument("--base", type=input_file, help=told)
    told = "how weights are rounded, on --text; otherwise than to nearest is what `bitplan quantize` does"
    flags.add_argument("--rounding", choices=get_args(Rounding), default="nearest", help=told)
    flags.add_argument("--text", type=input_file, help="text like what the model will be used on, for --rounding")
    flags.add_argument("--report", type=output_file, help="report.json to write: what is stored of each layer")
    told = "file to write for gguf; folder for other runtimes"
    flags.add_argument("-o", "--output", type=output_path, required=True, help=told)
    return flags


@contextmanager
def rounded_plan(args: Namespace) -> Iterator[Path]:
    """Yield the plan to export: the given one, or one that scripts/round_model.py rounds, for the time of the block. Raises `UserError`."""
    if args.rounding == "nearest":
        yield args.plan
        return
    if args.text is None:
        raise user_error(
            "FLAGS-INVALID", f"--rounding {args.rounding}", "rounds on a text, and none is given", "Give --text"
        )
    with temporary_folder(args.output.absolute().parent) as folder:
        words = (
            *("--model", args.model, "--plan", args.plan, "--calibration", args.text, "--rounding", args.rounding),
            *("--sequences", CALIBRATION_WINDOWS, "--threads", args.threads, "--output", folder),
        )
        program = (sys.executable, str(scripts_folder() / "round_model.py"), *map(str, words))
        if status := subprocess.run(program, check=False).returncode:
            sys.exit(status)
        yield folder / "plan.json"


def main(args: Namespace) -> None:
    """Write the plan and say how to run it. Raises `UserError` for a layer that the runtime cannot hold."""
    from bitplan.plans.names import name_of_plan
    from bitplan.runtimes.export import export

    runtime = runtime_named(args.runtime)
    check_output(runtime, args.output)
    args.plan_name = args.plan_name or name_of_plan(args.plan)
    with rounded_plan(args) as args.plan:
        export(runtime, args)
