"""What the `bitplan` program refuses before it starts the workflow, in the words of its flags."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bitplan.config.settings import Settings
from bitplan.console.project import Project, Wish
from bitplan.core.errors import Problem, UserError
from bitplan.workflow.model_checks import check_against_model, described

# How a setting is changed that no flag sets.
EDITED = "(in the config.yaml that bitplan init writes, for bitplan compare)"


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


def flags_of_settings(project: Project, wish: Wish) -> Mapping[str, str]:
    """Return {setting that a flag of `bitplan quantize` and `plan` sets: the flag}."""
    model, plan = f"models.{project.name}", f"plans.{wish.name}"
    return {
        f"{model}.calibration": "--text",
        f"{model}.evaluation": "--evaluation",
        f"{plan}.target_avg_bits": "--bits",
        f"{plan}.max_size": "--max-size",
    }


def _in_flags(problem: Problem, flags: Mapping[str, str]) -> Problem:
    """Return a problem at the flag that sets its setting; a value that follows the setting stays."""
    setting, mark, value = problem.where.partition(": ")
    hint = f"{problem.hint} {EDITED}" if ".sequences" in problem.hint else problem.hint
    return replace(problem, where=f"{flags[setting]}{mark and ' '}{value}", hint=hint) if setting in flags else problem


@contextmanager
def said_of_flags(project: Project, wish: Wish) -> Iterator[None]:
    """Say problems of settings that flags set as problems of these flags."""
    try:
        yield
    except UserError as error:
        flags = flags_of_settings(project, wish)
        raise UserError(_in_flags(problem, flags) for problem in error.problems) from None
