"""What an estimate starts from: settings of a file or a text, cores, an estimate made earlier."""

import os
from pathlib import Path
from typing import Any

import yaml

from bitplan.config.completion import completed
from bitplan.config.settings import Settings, parse_settings
from bitplan.core.errors import user_error
from bitplan.core.places import workflow_folder

DEMO_TEXTS = ("calibration.txt", "evaluation.txt")


def cores_here() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_threads(settings: Settings, threads: int | None) -> Settings:
    """Return the settings with so many threads for a step; unchanged without a number."""
    if threads is None:
        return settings
    return settings.model_copy(update={"compute": settings.compute.model_copy(update={"threads": threads})})


def _content(text: str) -> Any:
    """Return what a YAML file, or a YAML text that begins with a brace, holds. Raises `UserError`."""
    try:
        given = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        return yaml.safe_load(given)
    except (OSError, yaml.YAMLError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise user_error(
            "ESTIMATE-NO-SETTINGS", f"--settings {text[:80]}", f"cannot be read: {first}", "Give a YAML file"
        ) from None


def settings_for(given: str | None, name: str, model: Path) -> Settings:
    """Return the settings of a workflow in which a model has this name; without `given` it has one plan, and the bundled texts.

    Raises `UserError`.
    """
    content = _content(given) if given else {}
    if not isinstance(content, dict):
        raise user_error("ESTIMATE-NO-SETTINGS", "--settings", "are not a mapping", "Give a YAML file as config.yaml")
    if name not in (content.get("models") or {}):
        texts = dict(
            zip(
                ("calibration", "evaluation"),
                (str(workflow_folder() / "demo" / each) for each in DEMO_TEXTS),
                strict=True,
            )
        )
        content = {**content, "models": {**(content.get("models") or {}), name: {"path": str(model), **texts}}}
    return parse_settings(completed(content, workflow_folder()))
