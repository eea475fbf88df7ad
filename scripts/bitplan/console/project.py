"""A project of the `bitplan` program: a folder with a configuration for one model, in which the workflow runs and keeps its results."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bitplan.config.completion import completed
from bitplan.config.paths import check_places, placed_settings
from bitplan.config.settings import Settings, parse_settings
from bitplan.core.files import write_aside
from bitplan.core.places import workflow_folder
from bitplan.search.plan_settings import OF_RUNTIMES

FOLDER = ".bitplan"
GGUF = "gguf"
HEAD = "# Written by bitplan. Edit it and run `bitplan compare` here, or use it with snakemake --configfile.\n"


@dataclass(frozen=True)
class Wish:
    """What a user wants of a model: average bits, the size of a recipe or a limit on the file's size (exactly one), how weights are rounded,
    and the runtime that it is for."""

    bits: float | None = None
    same_size_as: str | None = None
    max_size: str | None = None
    rounding: str = "feedback"
    runtime: str = GGUF

    @property
    def name(self) -> str:
        """The name of the plan: letters, digits, dots and dashes."""
        size = f"{self.bits:g}bit" if self.bits is not None else self.same_size_as or self.max_size or ""
        words = ("optimal", size, "" if self.runtime == GGUF else self.runtime)
        return "-".join(filter(None, words)).replace("_", "-")

    @property
    def plan(self) -> dict[str, Any]:
        """The plan's settings."""
        size = {"target_avg_bits": self.bits, "same_size_as": self.same_size_as, "max_size": self.max_size}
        return {
            "method": "optimal",
            "rounding": self.rounding,
            **{key: value for key, value in size.items() if value is not None},
            **({} if self.runtime == GGUF else {"palette": OF_RUNTIMES}),
        }


@dataclass(frozen=True)
class Project:
    """A model's project. `folder` holds config.yaml, results/ and logs/; `name` is the model's name there. `typed` has the user's words for
    settings that come from flags."""

    folder: Path
    name: str
    typed: Mapping[str, str] = field(default_factory=dict, compare=False)

    def result(self, *parts: str) -> Path:
        """Return the path of one of the model's results."""
        return self.folder.joinpath("results", self.name, *parts)


def model_name(model: str) -> str:
    """Return a name for a model from its path or id: its last part, with letters, digits, dots, dashes and underscores only."""
    last = Path(model).resolve().name if Path(model).exists() else model.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-") or "model"


def project_of(model: str, work: Path) -> Project:
    """Return the project of a model below a folder: two models of the same name at different places have two."""
    place = str(Path(model).resolve()) if Path(model).exists() else model
    name = model_name(model)
    return Project(work / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}", name)


def absolute(path: str | Path) -> str:
    """Return a path that is the same from every folder; an id on the model hub stays as it is."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else str(path)


def configuration(project: Project, model: Mapping[str, Any], wish: Wish) -> dict[str, Any]:
    """Return the configuration of one model and one plan.

    model: the settings of the model, as under `models` in config.yaml. The recipe whose size the plan is to have becomes a baseline
    by itself, with and without importance matrix.
    """
    runtimes = {} if wish.runtime == GGUF else {"runtimes": [wish.runtime]}
    return {"models": {project.name: {**model, **runtimes}}, "plans": {wish.name: wish.plan}}


def checked_settings(config: Mapping[str, Any]) -> Settings:
    """Return the settings in a configuration. Raises `UserError` for settings that are not valid, and for paths that lead to no model or text."""
    settings = placed_settings(parse_settings(completed(config, workflow_folder())), workflow_folder())
    check_places(settings)
    return settings


def write_configuration(project: Project, config: Mapping[str, Any]) -> Path:
    """Write a configuration, which `checked_settings` has found valid, into a project's folder and return its path."""
    path = project.folder / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        aside.write_text(HEAD + yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    return path


def ignore_in_git_(folder: Path) -> None:
    """Make a folder that git takes no notice of, as it does of a virtual environment: by a .gitignore of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with write_aside(folder / ".gitignore") as aside:
        aside.write_text("*\n", encoding="utf-8")


def snakefile() -> Path:
    """Return the path of the workflow's Snakefile."""
    return workflow_folder() / "Snakefile"
