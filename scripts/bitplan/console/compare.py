"""`bitplan compare`: all models and plans of a configuration, up to the comparison page."""

from argparse import ArgumentParser, Namespace
from contextlib import chdir
from pathlib import Path

import yaml

from bitplan.cli.inputs import input_folder
from bitplan.cli.parser import parser
from bitplan.config.settings import Settings
from bitplan.config.unique_keys import check_duplicate_keys
from bitplan.console.checks import check_local_models
from bitplan.console.project import Project
from bitplan.console.snakemake_run import flags_of, run_workflow
from bitplan.console.step_warnings import StepWarning, records_of, tell_warnings, warnings_of
from bitplan.console.wishes import add_run_flags
from bitplan.core.errors import user_error
from bitplan.core.places import workflow_folder
from bitplan.workflow.session import settings_of

CONFIG = "config.yaml"
ABOUT = """Run the workflow on a folder's config.yaml, up to the comparison of its plans.

For example:

    bitplan compare project
"""


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(ABOUT)
    flags.add_argument("folder", type=input_folder, nargs="?", default=Path(), help="folder with a config.yaml")
    add_run_flags(flags)
    return flags


def _warnings(folder: Path, settings: Settings) -> list[StepWarning]:
    """Return what the steps behind the plans and baselines of a project's settings warned of."""
    names = tuple(settings.every_plan), tuple(settings.baselines)
    projects = [Project(folder, model) for model in settings.models]
    return [warning for each in projects for warning in warnings_of(each, records_of(each, *names))]


def main(args: Namespace) -> None:
    """Run every step that is not up to date; the workflow prints the headlines and where the pages are. Raises `UserError` for a
    folder without a config.yaml, and for settings that are not valid or that a local model cannot meet."""
    project = Project(args.folder.resolve(), "")
    if not (project.folder / CONFIG).is_file():
        raise user_error("INPUT-MISSING", project.folder / CONFIG, "does not exist", "Write one with bitplan init")
    with chdir(project.folder):
        check_duplicate_keys(Path(CONFIG))
        content = yaml.safe_load(Path(CONFIG).read_text(encoding="utf-8"))
        settings = settings_of(content if isinstance(content, dict) else {}, [CONFIG], workflow_folder())
        check_local_models(settings, Path("results"))
    run_workflow(project, [], args.cores, flags_of(args))
    if not args.dry_run:
        tell_warnings(_warnings(project.folder, settings))
