"""What settings ask of a model that it cannot give: known from its headers and its tokenizer, before anything is run on it.

A start of the workflow asks it of the models that have been described, the step that describes a model of the rest, and the `bitplan`
program before it starts the workflow.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from bitplan.config.settings import Settings
from bitplan.config.text_needs import needs_of
from bitplan.core.errors import Problem, UserError
from bitplan.core.files import read_json
from bitplan.formats.fitting import fitting_format
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import Layer, ModelInfo, model_info, outline
from bitplan.plans.layer_plan import LayerPlan
from bitplan.reference.bos import begins_with_bos
from bitplan.reference.token_count import count_tokens
from bitplan.runtimes.registry import runtime_named
from bitplan.runtimes.runtime import Runtime
from bitplan.workflow.inputs import model_folder, told_runtimes

# Bytes of a token that texts seldom reach: a longer text is not counted at every start.
LIKELY = 6


def plan_problems(settings: Settings, name: str, info: ModelInfo) -> Iterator[Problem]:
    """Yield what no search can reach for the plans of a model; cells of studies are made on demand, and not looked at."""
    for plan, section in settings.plans.items():
        runtimes = told_runtimes(settings, SimpleNamespace(model=name, plan=plan))
        for wrong in section.out_of_reach(info, settings, runtimes):
            yield replace(wrong, where=f"plans.{plan}.{wrong.where}", what=f"{wrong.what} on model {name}")
        formats = section.given_formats(settings)
        for runtime in map(runtime_named, settings.models[name].runtimes if formats else ()):
            yield from _refused(runtime, formats, info, f"plans.{plan}", name)


def _refused(
    runtime: Runtime, formats: Sequence[LayerPlan], info: ModelInfo, where: str, name: str
) -> Iterator[Problem]:
    """Yield layers that a runtime refuses in every format of a plan, those of a family that it does not know among them."""
    verdicts = {
        layer: [runtime.verdict(layer, _fit(form, layer), info) for form in formats] for layer in info.quantizable
    }
    refused = {
        layer: each[0].reason for layer, each in verdicts.items() if all(one.status == "refused" for one in each)
    }
    if refused:
        layer, reason = next(iter(refused.items()))
        what = f"{runtime.name} cannot store {len(refused)} of {len(verdicts)} layers of model {name} in any of its formats ({layer.name}: {reason})"
        hint = f"Choose other formats or groups, or take {runtime.name} out of models.{name}.runtimes"
        yield Problem("RUNTIME-REFUSED", where, what, hint)


def _fit(form: LayerPlan, layer: Layer) -> LayerPlan:
    return replace(form, wq=fitting_format(form.wq, layer.shape[1]))


def runtime_problems(settings: Settings, name: str, folder: Path) -> Iterator[Problem]:
    """Yield the runtimes of a model that cannot load a model of its architecture."""
    config = read_json(folder / "config.json")
    for runtime in map(runtime_named, settings.models[name].runtimes):
        if reason := runtime.why_unsupported and runtime.why_unsupported(config):
            hint = f"Take {runtime.name} out of models.{name}.runtimes (none: [])"
            yield Problem("RUNTIME-UNSUPPORTED", f"models.{name}.runtimes: {runtime.name}", reason, hint)


def text_problems(settings: Settings, name: str, folder: Path, likely: float = math.inf) -> Iterator[Problem]:
    """Yield the texts of a model that have fewer tokens than the settings use. Raises `UserError` for a file that is not UTF-8 text.

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
    problems = [*runtime_problems(settings, name, folder), *plan_problems(settings, name, info)]
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


def check_tasks(settings: Settings) -> None:
    """Raise `UserError` with every task of lm-eval, of the settings and of adaptive plans, that is not known. Nothing is checked where lm-eval is
    not installed."""
    asked = [("tasks.names", settings.tasks.names, settings.tasks.include_path)] + [
        (f"plans.{name}.task", [plan.task], plan.include_path)
        for name, plan in settings.plans.items()
        if getattr(plan, "task", None)
    ]
    problems: list[Problem] = []
    for key, names, include_path in asked if find_spec("lm_eval") else ():
        try:
            _check_known(names, include_path)
        except UserError as error:
            problems += (replace(each, where=f"{key}: {each.where}") for each in error.problems)
    if problems:
        raise UserError(problems)


def _check_known(names: Sequence[str], include_path: str | None) -> None:
    """Raise `UserError` for names that are no tasks of lm-eval, of the project or of a folder."""
    if names:
        from bitplan.evaluate.tasks import TaskSettings, known_tasks

        known_tasks(TaskSettings(tuple(names), include_path=Path(include_path) if include_path else None))
