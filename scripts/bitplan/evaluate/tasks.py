"""Tasks of lm-eval on a model: bundled ones, the user's, or those of the harness.

Word and byte perplexities of lm-eval are per word or byte of a document, over rolling windows that begin with BOS. They are not
comparable with the perplexity per token of `evaluate.scores`.
"""

import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from bitplan.core.errors import Problem, UserError, nearest, user_error
from bitplan.demo import DEMO
from bitplan.reference.text import load_tokenizer

log = logging.getLogger(__name__)
BUNDLED = DEMO / "tasks"
BUNDLED_TASKS = ("demo_stories", "demo_memory")
BOOTSTRAPS = 100
NO_FILTER = "none"
# A task's main metric is the first of these that it has.
PREFERRED = ("word_perplexity", "byte_perplexity", "perplexity", "acc_norm", "acc", "exact_match", "f1")


@dataclass(frozen=True)
class TaskSettings:
    """Tasks to run: documents per task (None: all), batch size, tokens per window, and a folder with the user's tasks."""

    tasks: tuple[str, ...]
    limit: int | None = None
    batch_size: int = 8
    max_length: int = 512
    include_path: Path | None = None


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their documents, ready to run on several models."""

    settings: TaskSettings
    manager: Any
    loaded: Mapping[str, Any]

    @property
    def runnable(self) -> list[Any]:
        """The loaded tasks, or their names if some are groups: lm-eval averages groups only by name."""
        single = self.loaded.get("tasks", {})
        return list(single.values()) if set(single) == set(self.settings.tasks) else list(self.settings.tasks)


def _manager(settings: TaskSettings):
    """Return lm-eval's index of tasks; the harness's tasks are included only if a name is neither bundled nor the user's."""
    from lm_eval.tasks import TaskManager

    folders = [str(folder) for folder in (BUNDLED, settings.include_path) if folder is not None]
    near = TaskManager(include_path=folders, include_defaults=False)
    if set(settings.tasks) <= set(near.all_tasks):
        return near
    return TaskManager(include_path=folders, include_defaults=True)


def task_files(settings: TaskSettings) -> dict[str, str]:
    """Return {path: SHA-256} of each file of the bundled tasks and of the user's."""
    folders = [folder for folder in (BUNDLED, settings.include_path) if folder is not None]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _check(settings: TaskSettings, known: Sequence[str]) -> None:
    problems = [
        Problem(
            "TASKS-UNKNOWN",
            f"task {name!r}",
            "is not an lm-eval task",
            nearest(name, known) or "Give the folder of its YAML file with --include-path",
        )
        for name in settings.tasks
        if name not in known
    ]
    if problems:
        raise UserError(problems)


def _check_yaml(folder: Path | None) -> None:
    """Raise `UserError` for a file of the user's tasks that is not YAML: lm-eval skips it, and its task is then unknown."""
    import yaml

    for path in sorted(folder.rglob("*.yaml")) if folder else ():
        try:
            yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            what = f"is not YAML: {' '.join(str(error).split())[:200]}"
            raise user_error(
                "TASKS-NOT-YAML", path, what, "Fix it or choose another folder with --include-path"
            ) from None


def _task_names(settings: TaskSettings) -> str:
    return f"task {', '.join(settings.tasks)}"


def _hint(settings: TaskSettings) -> str:
    """Return what to do about a known task that cannot be loaded."""
    data = "Hub data sets need a network, or a copy in the cache; demo_stories and demo_memory need neither"
    return f"Check its YAML file in {settings.include_path}. {data}" if settings.include_path else data


def known_tasks(settings: TaskSettings) -> Any:
    """Return lm-eval's index of tasks, in which all that the settings name are. Raises `UserError` for unknown names and files that are not YAML.

    The harness's own tasks are looked through, which takes some seconds, only for a name that is neither bundled nor the user's.
    """
    _check_yaml(settings.include_path)
    manager = _manager(settings)
    _check(settings, manager.all_tasks)
    return manager


def load_tasks(settings: TaskSettings) -> LoadedTasks:
    """Return the tasks with their data. Raises `UserError` for unknown names, and for data that cannot be loaded."""
    if settings.include_path is not None and not settings.include_path.is_dir():
        raise user_error(
            "TASKS-NO-FOLDER",
            settings.include_path,
            "is not a folder",
            "Give the folder that holds the task's YAML file",
        )
    from jinja2 import TemplateError

    manager = known_tasks(settings)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            loaded = manager.load(list(settings.tasks))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TemplateError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise user_error(
            "TASKS-NOT-LOADED", _task_names(settings), f"cannot be loaded: {first[:200]}", _hint(settings)
        ) from None
    return LoadedTasks(settings, manager, loaded)


def _harness_model(module: nn.Module, folder: Path, settings: TaskSettings):
    """Return the model in lm-eval's wrapper for transformers models."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=module,
        tokenizer=load_tokenizer(folder),
        batch_size=settings.batch_size,
        max_length=settings.max_length,
    )


def run_tasks(
    tasks: LoadedTasks, module: nn.Module, folder: Path, one_at_a_time: bool = False
) -> dict[str, dict[str, Any]]:
    """Return {task: its figures} of a transformers model with the tokenizer of `folder`.

    `one_at_a_time` is for plans whose activation scales span a window: they must not include the padding of a batch.

    Figures: every metric, its standard error as `{metric}_stderr` if the harness reports one, `documents`, and
    `higher_is_better`, the names of metrics for which higher is better.
    """
    from jinja2 import TemplateError
    from lm_eval.evaluator import simple_evaluate

    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    s = replace(tasks.settings, batch_size=1) if one_at_a_time else tasks.settings
    with contextlib.redirect_stdout(sys.stderr):
        try:
            results = simple_evaluate(
                model=_harness_model(module, folder, s),
                tasks=tasks.runnable,
                task_manager=tasks.manager,
                limit=s.limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
            )
        except TemplateError as error:
            raise user_error(
                "TASKS-BAD-TEMPLATE", _task_names(s), f"has a template that does not fit its data: {error}", _hint(s)
            ) from None
    return {name: _figures(results, name) for name in sorted(results["results"])}


def _figures(results: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the figures of one task; lm-eval's names include the filter of the answers, as in "acc,none"."""
    numbers = {
        key.replace(",none", "").replace(",", "."): value
        for key, value in results["results"][task].items()
        if isinstance(value, (int, float)) and "," in key
    }
    rising = [metric for metric, higher in results.get("higher_is_better", {}).get(task, {}).items() if higher]
    documents = results.get("n-samples", {}).get(task, {}).get("effective")
    return {**numbers, "higher_is_better": sorted(rising), "documents": documents}


def metrics_of(tasks: LoadedTasks, task: str) -> dict[str, bool]:
    """Return {metric: whether higher is better} of a task before it runs. Raises `UserError` for a group of tasks."""
    loaded = tasks.loaded.get("tasks", {}).get(task)
    if loaded is None:
        raise user_error("TASKS-IS-GROUP", f"task {task!r}", "is a group of tasks", "Give one of its tasks")
    rising, filters = loaded.higher_is_better(), [f.name for f in getattr(loaded, "_filters", [])] or [NO_FILTER]
    return {_metric_name(metric, name): bool(rising.get(metric)) for metric in loaded.aggregation() for name in filters}


def _metric_name(metric: str, filtered: str) -> str:
    """Return the name of a metric after a filter of the answers, as used in the figures."""
    return metric if filtered == NO_FILTER else f"{metric}.{filtered}"


def main_metric(metrics: Iterable[str], task: str, requested: str | None = None) -> str:
    """Return the main metric of a task: the requested one, or the first of `PREFERRED` that it has.

    Raises `UserError` if the task has no such metric.
    """
    names = list(metrics)
    usual = (name for metric in PREFERRED for name in names if name.split(".")[0] == metric)
    chosen = requested or next(usual, next(iter(names), ""))
    if chosen not in names:
        raise user_error(
            "TASKS-NO-METRIC", f"task {task!r}", f"has no metric {chosen!r}", f"It has: {', '.join(names)}"
        )
    return chosen


def loss_figure(value: float, higher_is_better: bool) -> float:
    """Return a figure that is lower for better models: the metric, or 1 - metric if higher is better (an error rate)."""
    return 1.0 - value if higher_is_better else value
