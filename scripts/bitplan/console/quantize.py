"""`bitplan quantize`: from a model to a smaller file, with what it costs and how to run it."""

import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from bitplan.cli.inputs import output_file
from bitplan.console.project import Project, Wish
from bitplan.console.result_card import card_of
from bitplan.console.run_hint import run_lines
from bitplan.console.snakemake_run import flags_of, run_workflow
from bitplan.console.step_warnings import StepWarning, records_of, tell_warnings, warnings_of
from bitplan.console.wishes import add_rounding_flag, add_run_flags, add_work_flag, prepared_project, wish_parser
from bitplan.core.files import read_json, write_aside
from bitplan.core.intervals import half_width
from bitplan.formats.fitting import UNFIT
from bitplan.models.checkpoint_files import CARD
from bitplan.runtimes.gguf.recipe_names import IMATRIX_SUFFIX
from bitplan.runtimes.registry import runtime_named

if TYPE_CHECKING:
    from bitplan.runtimes.card.card import Card

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


def figures(scores: dict) -> str:
    """Return KL and perplexity, the KL with its 95 % interval."""
    kl, interval = scores["kl_mean"], half_width(scores["kl_mean_error"])
    return f"KL {kl:.5f} +- {interval:.5f} (95 %), perplexity {scores['ppl']:.3f}"


def headline(name: str, size: int, bits: tuple[float, float], scores: dict) -> str:
    """Return size, bits and KL of a file in one line; `bits` are bits per parameter of the file and of the plan, which counts no metadata."""
    told = f"{bits[0]:.2f} bits per parameter of the file ({bits[1]:.2f} of the plan's formats)"
    return f"{name}: {size / 1e6:,.1f} MB, {told}, against the original {figures(scores)}"


def result_lines(project: Project, wish: Wish, output: Path, card: "Card") -> list[str]:
    """Return what is printed at the end: the file, the recipe of its size, and the types that it is stored as."""
    scores = read_json(project.result("plans", wish.name, RUNTIME, "perplexity.json"))
    bits = card.report["avg_bits_file"], card.plan_bits
    lines = [headline(str(output), output.stat().st_size, bits, scores)]
    for recipe in map(read_json, recipe_scores(project, wish)):
        lines.append(f"llama.cpp's {wish.same_size_as} with importance matrix, of the same size: {figures(recipe)}")
    return [*lines, f"Stored as {card.types}" + (f": {card.substituted}" if card.substituted else "")]


def warnings_to_tell(project: Project, wish: Wish) -> list[StepWarning]:
    """Return what the steps behind a wish's file warned of, but for rows that fit no format: the result tells which formats they have."""
    recipes = [f"{wish.same_size_as}{IMATRIX_SUFFIX}", wish.same_size_as] if wish.same_size_as else []
    told = warnings_of(project, records_of(project, [wish.name], recipes))
    return [warning for warning in told if UNFIT not in warning.text]


def earlier_estimate(project: Project, cores: int) -> str:
    """Return what a run of the project's configuration takes by the rates of an earlier one, in a line; "" where there is none. A first
    run times the model and prints this itself."""
    from bitplan.workflow.estimate.make import estimated_before
    from bitplan.workflow.estimate.read import settings_for

    settings = settings_for(str(project.folder / "config.yaml"), project.name, project.folder)
    made = estimated_before(project.result(), project.name, settings, cores)
    return f"{made.line}; finished steps are kept" if made else ""


def main(args: Namespace) -> None:
    """Run the workflow for one plan, copy its file to the output, write its model card beside it, and print what it costs, what the steps
    warned of and how to run it."""
    project, wish = prepared_project(args)
    first = "" if args.quiet else earlier_estimate(project, args.cores)
    run_workflow(project, targets_of(project, wish), args.cores, flags_of(args), first)
    if args.dry_run:
        return
    with write_aside(args.output) as aside:
        shutil.copyfile(project.result("plans", wish.name, RUNTIME, "model.gguf"), aside)
    from bitplan.runtimes.card.card import write_card

    runtime, warnings = runtime_named(RUNTIME), warnings_to_tell(project, wish)
    card = card_of(project, wish, runtime, args.output, warnings)
    write_card(card_beside(args.output), card)
    print("\n".join(result_lines(project, wish, args.output, card)))
    tell_warnings(warnings)
    print("\n".join(run_lines(runtime, args.output, card.report["name"])))
