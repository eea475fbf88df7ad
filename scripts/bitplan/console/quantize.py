"""`bitplan quantize`: from a model to a smaller file, with what it costs and how to run it."""

import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path

from bitplan.cli.inputs import output_file
from bitplan.console.project import Project, Wish
from bitplan.console.snakemake_run import flags_of, run_workflow
from bitplan.console.wishes import add_rounding_flag, add_run_flags, add_work_flag, prepared_project, wish_parser
from bitplan.core.files import read_json, write_aside
from bitplan.models.checkpoint_files import CARD
from bitplan.runtimes.gguf.recipe_names import IMATRIX_SUFFIX

RUNTIME = "gguf"
ABOUT = """Find the best number format for each weight matrix and write the quantized model.

For example:

    bitplan quantize ./model --text my-text.txt --same-size-as q4_k_m -o small.gguf
    bitplan quantize organization/name --text my-text.txt --bits 4.5 -o small.gguf
"""


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = wish_parser(ABOUT)
    add_rounding_flag(flags)
    add_work_flag(flags)
    add_run_flags(flags)
    flags.add_argument("-o", "--output", type=output_file, required=True, help="GGUF file to write")
    return flags


def recipe_scores(project: Project, wish: Wish) -> list[Path]:
    """Return the scores of the recipe whose size the plan has, with the importance matrix that the plan has, too; none without one."""
    recipe = wish.same_size_as
    return [project.result("baselines", f"{recipe}{IMATRIX_SUFFIX}", "perplexity.json")] if recipe else []


def targets_of(project: Project, wish: Wish) -> list[Path]:
    """Return the results to compute: the file and its scores, and those of the recipe of the same size."""
    plan = project.result("plans", wish.name)
    names = (f"{RUNTIME}/model.gguf", f"{RUNTIME}/perplexity.json", f"{RUNTIME}/{CARD}", "bits.json")
    return [project.result("estimate.txt"), *(plan / name for name in names), *recipe_scores(project, wish)]


def card_beside(output: Path) -> Path:
    """Return where the model card of a file stands: beside it, by its name, so that nobody's README.md is replaced."""
    return output.with_name(f"{output.stem}.{CARD}")


def headline(name: str, size: int, bits: float, scores: dict) -> str:
    """Return size, bits and KL of a file in one line."""
    kl, error = scores["kl_mean"], scores["kl_mean_error"]
    return (
        f"{name}: {size / 1e6:,.1f} MB, {bits:.2f} bits per parameter, KL {kl:.5f} +- {1.96 * error:.5f} against the original,"
        f" perplexity {scores['ppl']:.3f}"
    )


def result_lines(project: Project, wish: Wish, output: Path) -> list[str]:
    """Return what is printed at the end: the file, the recipe of its size, and how to run it."""
    plan = project.result("plans", wish.name)
    bits, scores = read_json(plan / "bits.json")["avg_bits"], read_json(plan / RUNTIME / "perplexity.json")
    lines = [headline(str(output), output.stat().st_size, bits, scores)]
    for recipe in map(read_json, recipe_scores(project, wish)):
        lines.append(
            f"llama.cpp's {wish.same_size_as} with importance matrix, of the same size: KL {recipe['kl_mean']:.5f},"
            f" perplexity {recipe['ppl']:.3f}"
        )
    return [*lines, f"Run it: llama-server -m {output}"]


def earlier_estimate(project: Project, cores: int) -> str:
    """Return what a run of the project's configuration takes by the rates of an earlier one, in a line; "" where there is none. A first
    run times the model and prints this itself."""
    from bitplan.workflow.estimate.make import estimated_before
    from bitplan.workflow.estimate.read import settings_for

    settings = settings_for(str(project.folder / "config.yaml"), project.name, project.folder)
    made = estimated_before(project.result(), project.name, settings, cores)
    return f"{made.line}; finished steps are kept" if made else ""


def main(args: Namespace) -> None:
    """Run the workflow for one plan, copy its file to the output and its model card, and print three lines."""
    project, wish = prepared_project(args)
    first = "" if args.quiet else earlier_estimate(project, args.cores)
    run_workflow(project, targets_of(project, wish), args.cores, flags_of(args), first)
    if args.dry_run:
        return
    plan = project.result("plans", wish.name, RUNTIME)
    for name, copy in (("model.gguf", args.output), (CARD, card_beside(args.output))):
        with write_aside(copy) as aside:
            shutil.copyfile(plan / name, aside)
    print("\n".join(result_lines(project, wish, args.output)))
