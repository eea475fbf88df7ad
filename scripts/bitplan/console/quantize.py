"""`bitplan quantize`: from a model to a smaller file, with what it costs and how to run it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from bitplan.cli.inputs import output_path
from bitplan.console.outputs import card_place, check_output, copy_artifact, written_bytes
from bitplan.console.project import GGUF, Project, Wish
from bitplan.console.result_card import card_of
from bitplan.console.run_hint import run_lines
from bitplan.console.snakemake_run import flags_of, run_workflow
from bitplan.console.step_warnings import StepWarning, records_of, tell_warnings, warnings_of
from bitplan.console.wishes import add_rounding_flag, add_run_flags, add_work_flag, prepared_project, wish_parser
from bitplan.core.files import read_json
from bitplan.core.intervals import half_width
from bitplan.core.sizes import in_unit_of, parse_size
from bitplan.formats.fitting import UNFIT
from bitplan.models.checkpoint_files import CARD
from bitplan.runtimes.gguf.recipe_names import IMATRIX_SUFFIX
from bitplan.runtimes.registry import runtime_named

if TYPE_CHECKING:
    from bitplan.runtimes.card.card import Card

ABOUT = """Find the best number format for each weight matrix and write the quantized model.

For example:

    bitplan quantize ./model --text my-text.txt --same-size-as q4_k_m -o small.gguf
    bitplan quantize organization/name --text my-text.txt --max-size 4GB -o small.gguf
    bitplan quantize ./model --text my-text.txt --bits 4.5 --runtime mlx -o small-mlx
"""


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = wish_parser(ABOUT)
    add_rounding_flag(flags)
    add_work_flag(flags)
    add_run_flags(flags)
    told = "GGUF file to write; folder for other runtimes"
    flags.add_argument("-o", "--output", type=output_path, required=True, help=told)
    return flags


def recipe_scores(project: Project, wish: Wish) -> list[Path]:
    """Return the scores of the recipe whose size the plan has, with the importance matrix that the plan has, too; none without one."""
    recipe = wish.same_size_as
    return [project.result("baselines", f"{recipe}{IMATRIX_SUFFIX}", "perplexity.json")] if recipe else []


def targets_of(project: Project, wish: Wish) -> list[Path]:
    """Return the results to compute: the file and its scores, and those of the recipe of the same size."""
    plan, runtime = project.result("plans", wish.name), runtime_named(wish.runtime)
    artifact, card = plan / runtime.name / runtime.artifact, plan / runtime.name / CARD
    files = (artifact, scores_of(project, wish), card, plan / "bits.json")
    return [project.result("estimate.txt"), *files, *recipe_scores(project, wish)]


def scores_of(project: Project, wish: Wish) -> Path:
    """Return the scores of the file in its runtime; those of the simulated plan where the runtime cannot run here."""
    in_runtime = (wish.runtime,) if runtime_named(wish.runtime).scored_here else ()
    return project.result("plans", wish.name, *in_runtime, "perplexity.json")


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
    scores, runtime = read_json(scores_of(project, wish)), runtime_named(wish.runtime)
    bits = card.report["avg_bits_file"], card.plan_bits
    lines = [headline(str(output), written_bytes(output), bits, scores)]
    if not runtime.scored_here:
        absent = ", ".join(runtime.absent_packages) or "a program that scores"
        lines.append(f"That KL is of the simulated plan: {runtime.name} does not run here without {absent}")
    for path in recipe_scores(project, wish):
        size = "of the same size" if wish.runtime == GGUF else _as_large_in_layers(path.with_name("model.gguf"))
        lines.append(f"llama.cpp's {wish.same_size_as} with importance matrix, {size}: {figures(read_json(path))}")
    return [*lines, f"Stored as {card.types}" + (f": {card.substituted}" if card.substituted else "")]


def _as_large_in_layers(recipe: Path) -> str:
    """Return how a recipe's file compares with a folder of a runtime that keeps the embedding at 16 bits."""
    return f"whose layers take as much ({recipe.stat().st_size / 1e6:,.1f} MB with the embedding quantized, too)"


def warnings_to_tell(project: Project, wish: Wish) -> list[StepWarning]:
    """Return what the steps behind a wish's file warned of, but for rows that fit no format: the result tells which formats they have."""
    recipes = [f"{wish.same_size_as}{IMATRIX_SUFFIX}", wish.same_size_as] if wish.same_size_as else []
    records = records_of(project, [wish.name], recipes)
    # What llama.cpp makes of the vocabulary is nothing to other runtimes.
    of_others = [record for record in records if not record.name.startswith("base.gguf")]
    told = warnings_of(project, records if wish.runtime == GGUF else of_others)
    return [warning for warning in told if UNFIT not in warning.text]


def too_large(wish: Wish, output: Path) -> list[StepWarning]:
    """Return a warning of a file that is larger than it may be: a runtime stores some layer in more bytes than its verdict says."""
    size = written_bytes(output)
    if wish.max_size is None or size <= parse_size(wish.max_size):
        return []
    shown = in_unit_of(size, wish.max_size, up=True)
    return [StepWarning(f"{output} takes {shown}, more than --max-size {wish.max_size}: give a smaller one")]


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
    runtime = runtime_named(args.runtime)
    if not args.dry_run:
        check_output(runtime, args.output)
    project, wish = prepared_project(args)
    first = "" if args.quiet else earlier_estimate(project, args.cores)
    run_workflow(project, targets_of(project, wish), args.cores, flags_of(args), first)
    if args.dry_run:
        return
    copy_artifact(runtime, project.result("plans", wish.name, runtime.name, runtime.artifact), args.output)
    from bitplan.runtimes.card.card import write_card

    warnings = [*too_large(wish, args.output), *warnings_to_tell(project, wish)]
    card = card_of(project, wish, args.text, args.output, warnings)
    write_card(card_place(runtime, args.output), card)
    print("\n".join(result_lines(project, wish, args.output, card)))
    tell_warnings(warnings)
    print("\n".join(run_lines(runtime, args.output, card.report["name"])))
