"""`bitplan plan`: which format each weight matrix gets, without writing a model."""

import os
import shlex
import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path

from bitplan.cli.inputs import output_file
from bitplan.console.project import GGUF, Project
from bitplan.console.quantize import figures
from bitplan.console.snakemake_run import flags_of, run_workflow
from bitplan.console.step_warnings import records_of, tell_warnings, warnings_of
from bitplan.console.wishes import add_run_flags, add_work_flag, prepared_project, wish_parser
from bitplan.core.files import read_json, write_aside
from bitplan.runtimes.registry import runtime_named

ABOUT = """Find the best number format for each weight matrix and write the plan.

For example:

    bitplan plan ./model --text my-text.txt --bits 4.5 -o plan.json
"""


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = wish_parser(ABOUT)
    add_work_flag(flags)
    add_run_flags(flags)
    flags.add_argument("-o", "--output", type=output_file, required=True, help="plan.json to write")
    return flags


def export_command(args: Namespace, project: Project) -> str:
    """Return the command that writes the plan as `bitplan quantize` would: with feedback, and the importance matrix where types use one."""
    runtime = runtime_named(args.runtime)
    output = args.output.with_suffix("" if runtime.is_folder else Path(runtime.artifact).suffix)
    importance = project.result("layer_stats.safetensors")
    matrix = ["--imatrix", os.path.relpath(importance)] if importance.is_file() else []
    chosen = [] if args.runtime == GGUF else ["--runtime", args.runtime]
    of_model = ["--model", args.model, *(["--revision", args.revision] if args.revision else [])]
    rounded = ["--text", args.text, "--rounding", "feedback"]
    words = ("bitplan", "export", args.output, *of_model, *chosen, *matrix, *rounded, "-o", output)
    return shlex.join(map(str, words))


def main(args: Namespace) -> None:
    """Run the workflow up to the plan and its simulated scores (rounded to nearest), copy the plan and print a line."""
    project, wish = prepared_project(args)
    folder = project.result("plans", wish.name)
    names = ("plan.json", "bits.json", "perplexity.json")
    run_workflow(project, [folder / name for name in names], args.cores, flags_of(args))
    if args.dry_run:
        return
    with write_aside(args.output) as aside:
        shutil.copyfile(folder / "plan.json", aside)
    bits, scores = read_json(folder / "bits.json")["avg_bits"], read_json(folder / "perplexity.json")
    print(f"{args.output}: {bits:.2f} bits per parameter of the plan's formats, simulated: {figures(scores)}")
    print(f"Write a file of it: {export_command(args, project)}")
    tell_warnings(warnings_of(project, records_of(project, [wish.name])))
