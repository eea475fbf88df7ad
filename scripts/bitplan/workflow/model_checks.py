"""What settings ask of a model that it cannot give: known from its headers and its tokenizer, before anything is run on it.

A start of the workflow asks it of the models that have been described, the step that describes a model of the rest, and the `bitplan`
program before it starts the workflow.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from bitplan.config.settings import Settings
from bitplan.config.text_needs import needs_of
from bitplan.core.errors import Problem, UserError
from bitplan.core.files import read_json
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import ModelInfo, model_info, outline
from bitplan.reference.token_count import begins_with_bos, count_tokens
from bitplan.workflow.inputs import model_folder, told_runtimes

# Bytes of a token that texts seldom reach: a longer text is not counted at every start.
LIKELY = 6


def plan_problems(settings: Settings, name: str, info: ModelInfo) -> Iterator[Problem]:
    """Yield what no search can reach for the plans of a model; cells of studies are made on demand, and not looked at."""
    for plan, section in settings.plans.items():
        runtimes = told_runtimes(settings, SimpleNamespace(model=name, plan=plan))
        for wrong in section.out_of_reach(info, settings, runtimes):
            yield replace(wrong, where=f"plans.{plan}.{wrong.where}", what=f"{wrong.what} on model {name}")


def text_problems(settings: Settings, name: str, folder: Path, likely: float = math.inf) -> Iterator[Problem]:
    """Yield the texts of a model that have fewer tokens than the settings use. Raises `UserError` for what is no text.

    `likely`: a text of so many bytes for each token that is needed is long enough in all likelihood, and not counted.
    """
    first = int(begins_with_bos(read_json(folder / "config.json"), settings.bos))
    for need in needs_of(settings, name):
        needed, path = need.tokens(first), Path(need.path)
        if path.stat().st_size >= likely * needed:
            continue
        found = count_tokens(folder, path, needed)
        if found < needed:
            yield need.problem(name, f"has {found:,} tokens", need.fewer_windows(found, first), first)


def _problems(settings: Settings, name: str, info: ModelInfo, folder: Path, likely: float = math.inf) -> list[Problem]:
    problems = list(plan_problems(settings, name, info))
    try:
        return [*problems, *text_problems(settings, name, folder, likely)]
    except UserError as error:
        return [*problems, *error.problems]


def check_against_model(settings: Settings, name: str, path: Path) -> None:
    """Raise `UserError` with everything that the settings ask of a model and it cannot give. path: its folder, or a model.json."""
    checkpoint = Checkpoint.open(path)
    info = model_info(path) if path.suffix == ".json" else outline(checkpoint)
    if problems := _problems(settings, name, info, checkpoint.folder):
        raise UserError(problems)


def described(settings: Settings, name: str, results: Path) -> ModelInfo | None:
    """Return the description of a model that an earlier run left; None where there is none of the folder that the settings name."""
    path, folder = results / name / "model.json", Path(model_folder(settings, SimpleNamespace(model=name)))
    try:
        info = model_info(path) if path.is_file() else None
    except UserError:
        # The workflow makes one that cannot be read anew, and checks then.
        return None
    same = info is not None and Path(info.path).resolve() == folder.resolve() and (folder / "config.json").is_file()
    return info if same else None


def check_described(settings: Settings, results: Path = Path("results")) -> None:
    """Raise `UserError` with everything that the settings ask of models that are described, and these cannot give.

    So a changed setting or text is refused before any result is removed to be made anew. It takes milliseconds: texts that are long enough in all
    likelihood are left to the steps.
    """
    known = {name: described(settings, name, results) for name in settings.models}
    problems = [
        problem
        for name, info in known.items()
        if info
        for problem in _problems(settings, name, info, Path(info.path), LIKELY)
    ]
    if problems:
        raise UserError(problems)
