"""`bitplan init`: a folder with a configuration to edit, for a model of one's own."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from bitplan.cli.inputs import new_folder
from bitplan.console.project import Project, configuration, model_name, write_configuration
from bitplan.console.wishes import texts_of, wish_of, wish_parser


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = wish_parser("Write a configuration for a model, to edit and to run with `bitplan compare`.")
    flags.add_argument("-o", "--output", type=new_folder, default=Path("bitplan-project"), help="folder to make")
    return flags


def main(args: Namespace) -> None:
    """Write config.yaml and say what to do with it."""
    project, wish = Project(args.output.resolve(), model_name(str(args.model))), wish_of(args)
    path = write_configuration(project, configuration(project, texts_of(args), wish))
    print(f"{path}: edit it, then run `bitplan compare {args.output}`")
