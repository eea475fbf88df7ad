"""`bitplan estimate`: what a model's steps will take on this machine."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from bitplan.cli.inputs import input_file
from bitplan.cli.parser import fetched, parser
from bitplan.config.flag_types import count
from bitplan.config.paths import check_model
from bitplan.console.project import model_name
from bitplan.workflow.estimate.make import Estimate, estimated
from bitplan.workflow.estimate.read import cores_here, settings_for
from bitplan.workflow.model_checks import check_against_model

ABOUT = """Estimate time, memory and disk of every step of a model on this machine; takes some seconds.

For example:

    bitplan estimate ./model
    bitplan estimate ./model --settings mine.yaml --cores 8
"""


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(ABOUT)
    flags.add_argument("model", help="folder of a checkpoint, or an id on the model hub (organization/name)")
    flags.add_argument("--revision", help="branch, tag or commit on the model hub")
    told = "config.yaml with the plans to make; without: what `bitplan quantize` does"
    flags.add_argument("--settings", type=input_file, help=told)
    flags.add_argument("--cores", type=count, help="processor cores of the run; all by default")
    return flags


def estimate_of(
    model: str, revision: str | None = None, settings: Path | None = None, cores: int | None = None
) -> Estimate:
    """Return the estimate of a model's steps here. Raises `UserError`."""
    check_model(str(Path(model).expanduser()))
    name = model_name(model)
    folder = fetched(Path(model).expanduser(), revision)
    used = settings_for(str(settings) if settings else None, name, folder)
    if settings:
        check_against_model(used, name, folder)
    return estimated(folder, name, used, cores or cores_here())


def main(args: Namespace) -> None:
    """Print a row for each step, and the whole in one line."""
    print(estimate_of(args.model, args.revision, args.settings, args.cores).text, end="")
