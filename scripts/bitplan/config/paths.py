"""Where the paths in settings lead: the user's from the working directory, those of the bundled demo from the workflow's folder."""

import hashlib
import os
from pathlib import Path
from typing import Any

from bitplan.config.settings import Settings
from bitplan.core.errors import Problem, UserError

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


def same_text(one: str, other: str) -> bool:
    """Return whether two paths lead to one text: one file, a link to it, or the same content."""
    paths = (one, other)
    if not all(map(os.path.isfile, paths)):
        return False
    if os.path.samefile(one, other):
        return True
    if os.path.getsize(one) != os.path.getsize(other):
        return False
    first, second = (hashlib.sha256(Path(path).read_bytes()).digest() for path in paths)
    return first == second


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
