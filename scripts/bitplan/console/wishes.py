"""The flags that the commands of the `bitplan` program share, and the project that they describe."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import get_args

from bitplan.cli.inputs import input_file
from bitplan.cli.parser import add_text_flag, parser
from bitplan.config.flag_types import ALL_CORES, count, number, size_text
from bitplan.console.checks import check_local_models
from bitplan.console.project import (
    FOLDER,
    GGUF,
    Project,
    Wish,
    absolute,
    checked_settings,
    configuration,
    ignore_in_git_,
    project_of,
    write_configuration,
)
from bitplan.console.typed_words import in_typed_words, typed_words
from bitplan.runtimes.gguf.recipe_names import QUANTIZED_RECIPES, spelt, unknown
from bitplan.runtimes.registry import RUNTIMES, known_runtime
from bitplan.search.plan_settings import Rounding

DEFAULT_RECIPE = "q4_k_m"


def recipe(text: str) -> str:
    """The argparse type of a recipe of llama.cpp, in any case and with dashes or underscores."""
    if what := unknown(text, QUANTIZED_RECIPES):
        raise ArgumentTypeError(what)
    return spelt(text)


def wish_parser(description: str) -> ArgumentParser:
    """Return a parser with the flags of a model, its texts and the size of its plan."""
    flags = parser(description)
    # A text, not a path: a model of the hub is downloaded by the workflow.
    flags.add_argument("model", help="folder of a checkpoint, or an id on the model hub (organization/name)")
    flags.add_argument("--revision", help="branch, tag or commit on the model hub")
    add_text_flag(flags, "--text", "calibration.txt", "text like what the model will be used on, for calibration")
    flags.add_argument("--evaluation", type=input_file, help="text to compare on; the rest of --text when absent")
    sizes = flags.add_mutually_exclusive_group()
    sizes.add_argument(
        "--same-size-as",
        type=recipe,
        metavar="RECIPE",
        help=f"as large as a recipe of llama.cpp; {DEFAULT_RECIPE} when no size is given",
    )
    told = "largest size of the file, as 4GB or 500MB; of other runtimes than gguf that of the whole folder"
    sizes.add_argument("--max-size", type=size_text, metavar="SIZE", help=told)
    sizes.add_argument("--bits", type=number(0.0, 16.0, open_low=True), help="average bits over all parameters")
    add_runtime_flag(flags)
    return flags


def runtime(text: str) -> str:
    """The argparse type of a runtime, with dashes or underscores."""
    try:
        return known_runtime(text.strip().lower().replace("-", "_"))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def add_runtime_flag(flags: ArgumentParser) -> None:
    """Add --runtime."""
    told = f"what the file is for, one of {', '.join(RUNTIMES)}"
    flags.add_argument("--runtime", type=runtime, default=GGUF, help=told)


def add_rounding_flag(flags: ArgumentParser) -> None:
    """Add --rounding."""
    told = "how weights are rounded, at the same size"
    flags.add_argument("--rounding", choices=get_args(Rounding), default="feedback", help=told)


def add_run_flags(flags: ArgumentParser) -> None:
    """Add --cores, --dry-run and --quiet."""
    flags.add_argument("--cores", type=count, default=ALL_CORES, help="processor cores to use")
    flags.add_argument("--dry-run", action="store_true", help="print the steps and run none")
    flags.add_argument("--quiet", action="store_true", help="print the result, warnings and errors only")


def add_work_flag(flags: ArgumentParser) -> None:
    """Add --work."""
    told = "folder for results; a later run continues from them"
    flags.add_argument("--work", type=Path, default=Path(FOLDER), help=told)


def wish_of(args: Namespace) -> Wish:
    """Return the size that the flags ask for, how weights are rounded (to nearest for a command without the flag), and the runtime."""
    default = DEFAULT_RECIPE if (args.bits, args.same_size_as, args.max_size) == (None, None, None) else None
    rounding = getattr(args, "rounding", "nearest")
    return Wish(args.bits, args.same_size_as or default, args.max_size, rounding, args.runtime)


def model_settings(args: Namespace) -> dict[str, str]:
    """Return the settings of the model, as under `models` in config.yaml, with absolute paths."""
    paths = {"path": args.model, "calibration": args.text, "evaluation": args.evaluation or args.text}
    revision = {"revision": args.revision} if args.revision else {}
    return {key: absolute(path) for key, path in paths.items()} | revision


def prepared_project(args: Namespace) -> tuple[Project, Wish]:
    """Write the configuration that the flags describe and return its project. Raises `UserError` for settings that are not valid, or that
    a local model cannot meet."""
    project, wish = project_of(args.model, args.work.resolve()), wish_of(args)
    project = replace(project, typed=typed_words(args, project.name, wish.name))
    config = configuration(project, model_settings(args), wish)
    with in_typed_words(project.typed):
        check_local_models(checked_settings(config), project.folder / "results")
        write_configuration(project, config)
    ignore_in_git_(project.folder)
    return project, wish
