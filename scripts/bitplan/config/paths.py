"""Where the paths in settings lead: the user's from the working directory, those of the bundled demo from the workflow's folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitplan.config.same_text import same_text
from bitplan.config.settings import Settings
from bitplan.config.text_needs import short_texts
from bitplan.core.errors import Problem, UserError
from bitplan.models.hub.ids import looks_like_id

DEMO = "demo"


def placed(path: str, workflow: Path) -> str:
    """Return a path seen from the working directory.

    What the working directory lacks and the workflow's demo has is the workflow's: so the demo runs in any --directory.
    """
    bundled = Path(path).parts[:1] == (DEMO,) and not os.path.lexists(path) and os.path.lexists(workflow / path)
    return os.path.relpath(workflow / path) if bundled else path


def _updated(section: Any, keys: tuple[str, ...], workflow: Path) -> Any:
    held = {key: getattr(section, key, None) for key in keys}
    return section.model_copy(update={key: placed(path, workflow) for key, path in held.items() if path is not None})


def placed_settings(settings: Settings, workflow: Path) -> Settings:
    """Return the settings with every path seen from the working directory."""
    models = {
        name: _updated(model, ("path", "calibration", "evaluation"), workflow)
        for name, model in settings.models.items()
    }
    plans = {name: _updated(plan, ("include_path",), workflow) for name, plan in settings.plans.items()}
    tasks = _updated(settings.tasks, ("include_path",), workflow)
    return settings.model_copy(update={"models": models, "plans": plans, "tasks": tasks})


def _model_problem(path: str) -> tuple[str, str, str] | None:
    """Return the code, what is wrong with the place of a model and what to do; None for a checkpoint, or what may be an id on the model hub."""
    if os.path.isfile(path):
        return (
            "MODEL-IS-FILE",
            "is a file, not the folder of a checkpoint",
            "Give the folder with config.json and *.safetensors",
        )
    if os.path.isdir(path):
        inner = sorted(name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name, "config.json")))
        if os.path.isfile(os.path.join(path, "config.json")):
            return None
        hint = (
            f"Give one of the models in it, e.g. {os.path.join(path, inner[0])}" if inner else "Give the model's folder"
        )
        return "MODEL-NO-CONFIG", "is a folder without a config.json", hint
    if looks_like_id(path):
        return None
    return (
        "INPUT-MISSING",
        "does not exist",
        "Give the folder of a checkpoint, or an id on the model hub (organization/name)",
    )


def _text_problem(path: str) -> tuple[str, str, str] | None:
    if os.path.isfile(path):
        return None
    fault = ("INPUT-IS-FOLDER", "is a folder") if os.path.isdir(path) else ("INPUT-MISSING", "does not exist")
    return *fault, "Give a text file (UTF-8)"


def check_model(path: str) -> None:
    """Raise `UserError` for a path that leads to no model and is no id on the model hub."""
    if wrong := _model_problem(path):
        code, what, hint = wrong
        raise UserError([Problem(code, path, what, hint)])


def _absent_task_folders(settings: Settings) -> Iterator[Problem]:
    """Yield folders of the user's tasks that are not there."""
    named = {"tasks": settings.tasks, **{f"plans.{name}": plan for name, plan in settings.plans.items()}}
    for key, section in named.items():
        path = getattr(section, "include_path", None)
        if path is not None and not os.path.isdir(path):
            hint = "Give the folder that holds the tasks' YAML files"
            yield Problem("TASKS-NO-FOLDER", f"{key}.include_path: {path}", "is not a folder", hint)


def check_places(settings: Settings) -> None:
    """Raise `UserError` with every path of a model or a text that does not lead to one, and every text that is too short for its windows
    under any tokenizer."""
    problems = [*_absent_task_folders(settings)]
    for name, model in settings.models.items():
        checks = {"path": _model_problem, "calibration": _text_problem, "evaluation": _text_problem}
        for key, check in checks.items():
            if wrong := check(getattr(model, key)):
                code, what, hint = wrong
                problems.append(Problem(code, f"models.{name}.{key}: {getattr(model, key)}", what, hint))
        try:
            problems += short_texts(settings, name)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)


def tokens_seen(settings: Settings, name: str) -> int:
    """Return how many tokens of a model's evaluation text come before those that are held out: 0 where it is a text of its own.

    Raises `UserError` where it is the calibration text too, and all of that is used.
    """
    model = settings.models[name]
    if not same_text(model.calibration, model.evaluation):
        return 0
    before = settings.tokens_before_evaluation
    if before is None:
        used = "validation" if settings.calibration.sequences else "calibration"
        what = f"is the calibration text too, and {used}.sequences: null uses all of it"
        raise UserError(
            [
                Problem(
                    "SETTINGS-NOTHING-HELD-OUT",
                    f"models.{name}.evaluation",
                    what,
                    f"Set {used}.sequences or use another evaluation text",
                )
            ]
        )
    return before
