"""What the `bitplan` program refuses before it starts the workflow."""

from pathlib import Path

from bitplan.config.settings import Settings
from bitplan.core.errors import Problem, UserError
from bitplan.workflow.model_checks import check_against_model, described


def check_local_models(settings: Settings, results: Path) -> None:
    """Raise `UserError` with everything that the settings ask of models in local folders, and these cannot give. results: those of earlier runs."""
    problems: list[Problem] = []
    for name, model in settings.models.items():
        if Path(model.path).is_dir():
            known = described(settings, name, results)
            try:
                check_against_model(settings, name, results / name / "model.json" if known else Path(model.path))
            except UserError as error:
                problems += error.problems
    if problems:
        raise UserError(problems)
