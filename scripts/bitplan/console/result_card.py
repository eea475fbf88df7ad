"""The model card beside a quantized file: for the name that the file has there, with what the steps warned of."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bitplan.console.project import Project, Wish
from bitplan.console.step_warnings import StepWarning
from bitplan.core.files import read_json
from bitplan.runtimes.runtime import Runtime
from bitplan.workflow.inputs import ROUNDED_PLAN

if TYPE_CHECKING:
    from bitplan.runtimes.card.card import Card

FLAGS = {
    "bits": "--bits",
    "same_size_as": "--same-size-as",
    "max_size": "--max-size",
    "runtime": "--runtime",
    "rounding": "--rounding",
}


def command_of(wish: Wish, output: Path) -> str:
    """Return the command that makes a file again, without the paths of this machine."""
    flags = {flag: getattr(wish, key) for key, flag in FLAGS.items()}
    words = [word for flag, value in flags.items() if value is not None for word in (flag, f"{value}")]
    return f"bitplan quantize MODEL --text TEXT {shlex.join([*words, '-o', output.name])}"


def used_plan(project: Project, wish: Wish) -> Path:
    """Return the plan that was exported: the one that was searched, or that one with its weights rounded."""
    folder = project.result("plans", wish.name)
    return folder.joinpath(*([] if wish.rounding == "nearest" else [ROUNDED_PLAN]), "plan.json")


def calibration_of(project: Project) -> Path:
    """Return the calibration text of a project's model."""
    config = yaml.safe_load((project.folder / "config.yaml").read_text(encoding="utf-8"))
    return Path(config["models"][project.name]["calibration"])


def card_of(project: Project, wish: Wish, runtime: Runtime, output: Path, warnings: Sequence[StepWarning]) -> "Card":
    """Return the card of a wish's file, which lies at `output`. Raises `UserError` for results that are damaged."""
    from bitplan.models.layers import model_info
    from bitplan.plans.plan import read_plan
    from bitplan.runtimes.card.card import make_card, read_scores

    info = model_info(project.result("model.json"))
    info = replace(info, path=str(project.folder / info.path))
    plan, results = used_plan(project, wish), project.result("plans", wish.name)
    report = read_json(results / runtime.name / "report.json")
    places = (results / runtime.name / "perplexity.json", results / "perplexity.json")
    place = output.resolve()
    text = runtime.how_to_run(place, report["name"]).replace(f"{place.parent}{os.sep}", "")
    here = {"how_to_run": text, "command": command_of(wish, output)}
    scores = read_scores(next(filter(Path.exists, places), None))
    card = make_card(info, (plan, read_plan(plan, info)), {**report, **here}, scores, calibration_of(project))
    return replace(card, warnings=[warning.text for warning in warnings], alone=True)
