"""`bitplan init`: a folder with a configuration for a model, to edit."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from bitplan.cli.inputs import new_folder
from bitplan.console.project import Project, checked_settings, configuration, model_name, write_configuration
from bitplan.console.wishes import add_rounding_flag, model_settings, wish_of, wish_parser

ABOUT = """Write a configuration for a model, to edit and to run with `bitplan compare`.

For example:

    bitplan init ./model --text my-text.txt --same-size-as q4_k_m -o project
"""


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = wish_parser(ABOUT)
    add_rounding_flag(flags)
    flags.add_argument("-o", "--output", type=new_folder, default=Path("bitplan-project"), help="folder to make")
    return flags


def main(args: Namespace) -> None:
    """Write config.yaml and say what to do with it."""
    project, wish = Project(args.output.resolve(), model_name(args.model)), wish_of(args)
    config = configuration(project, model_settings(args), wish)
    checked_settings(config)
    path = write_configuration(project, config)
    print(f"{path}: edit it, then run `bitplan compare {args.output}`")
