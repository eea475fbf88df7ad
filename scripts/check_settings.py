"""Check settings of the workflow against a model: plans that are smaller than any choice of formats, texts that are too short, unknown tasks.

For example:

    python scripts/check_settings.py --model demo/model --name demo --settings demo/config.yaml
"""

from argparse import ArgumentParser

from bitplan.cli.parser import add_model_flag, parser, run


def main(args) -> None:
    """Say that the settings fit the model. Raises `UserError` with everything that does not."""
    from bitplan.workflow.estimate.read import settings_for
    from bitplan.workflow.model_checks import check_against_model, check_tasks

    settings = settings_for(args.settings, args.name, args.model)
    check_against_model(settings, args.name, args.model)
    check_tasks(settings)
    print(f"{args.name}: plans and texts fit the model")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--name", default="model", help="name of the model in the settings")
    flags.add_argument(
        "--settings",
        help="file with settings of the workflow, or their text; without: one optimal plan at the size of Q4_K_M",
    )
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
