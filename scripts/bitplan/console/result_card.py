"""The model card beside a quantized file: for the name that the file has there, with what the steps warned of."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitplan.console.project import Project, Wish
from bitplan.console.step_warnings import StepWarning
from bitplan.console.typed_words import OF_PLAN
from bitplan.core.files import read_json
from bitplan.runtimes.registry import runtime_named
from bitplan.workflow.inputs import ROUNDED_PLAN

if TYPE_CHECKING:
    from bitplan.runtimes.card.card import Card


def command_of(wish: Wish, output: Path) -> str:
    """Return the command that makes a file again, without the paths of this machine."""
    # The palette of a plan follows from its runtime.
    settings = {**wish.plan, "palette": wish.runtime}
    words = [word for key, flag in OF_PLAN.items() if key in settings for word in (flag, f"{settings[key]}")]
    return f"bitplan quantize MODEL --text TEXT {shlex.join([*words, '-o', output.name])}"


def used_plan(project: Project, wish: Wish) -> Path:
    """Return the plan that was exported: the one that was searched, or that one with its weights rounded."""
    folder = project.result("plans", wish.name)
    return folder.joinpath(*([] if wish.rounding == "nearest" else [ROUNDED_PLAN]), "plan.json")


def card_of(project: Project, wish: Wish, text: Path, output: Path, warnings: Sequence[StepWarning]) -> "Card":
    """Return the card of a wish's file, which lies at `output`; `text` is the calibration text. Raises `UserError` for results that are damaged."""
    from bitplan.models.layers import model_info
    from bitplan.plans.plan import read_plan
    from bitplan.runtimes.card.card import make_card, read_scores

    info = model_info(project.result("model.json"))
    info = replace(info, path=str(project.folder / info.path))
    runtime, plan, results = runtime_named(wish.runtime), used_plan(project, wish), project.result("plans", wish.name)
    report = read_json(results / runtime.name / "report.json")
    places = (results / runtime.name / "perplexity.json", results / "perplexity.json")
    place = output.resolve()
    how = runtime.how_to_run(place, report["name"]).replace(f"{place.parent}{os.sep}", "")
    here = {"how_to_run": how, "command": command_of(wish, output)}
    scores = read_scores(next(filter(Path.exists, places), None))
    card = make_card(info, (plan, read_plan(plan, info)), {**report, **here}, scores, text)
    return replace(card, warnings=[warning.text for warning in warnings], alone=True)
