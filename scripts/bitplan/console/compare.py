"""`bitplan compare`: all models and plans of a configuration, up to the comparison page."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from bitplan.cli.inputs import input_folder
from bitplan.cli.parser import count, parser
from bitplan.console.project import Project
from bitplan.console.snakemake_run import run_workflow


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser("Run the workflow on a folder's config.yaml, up to the comparison of its plans.")
    flags.add_argument("folder", type=input_folder, nargs="?", default=Path(), help="folder with a config.yaml")
    flags.add_argument("--cores", type=count, default=os.cpu_count() or 1, help="processor cores to use")
    flags.add_argument("--dry-run", action="store_true", help="print the steps and run none")
    return flags


def main(args: Namespace) -> None:
    """Run every step that is not up to date; the workflow prints the tables and where the pages are."""
    project = Project(args.folder.resolve(), "")
    run_workflow(project, [], args.cores, ["--dry-run"] if args.dry_run else [])
