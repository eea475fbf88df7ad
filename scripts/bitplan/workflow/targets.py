"""Which files the workflow's targets ask for."""

from collections.abc import Callable, Iterable
from itertools import product

from bitplan.config.settings import Settings
from bitplan.runtimes.registry import runtime_named
from bitplan.runtimes.runtime import Runtime
from bitplan.workflow.inputs import BASELINES

COMPARISON = ("comparison.tsv", "comparison.json", "comparison.txt", "comparison.html", "comparison.svg")


def with_baselines(settings: Settings) -> list[str]:
    """Return the names of the models that llama.cpp's own recipes are compared for: those with GGUF files."""
    return [name for name, model in settings.models.items() if BASELINES in model.runtimes]


def of_runtimes(settings: Settings, chosen: Callable[[Runtime], Iterable[str]]) -> list[str]:
    """Return the results of every plan in the runtimes of every model that `chosen` names for a runtime."""
    return [
        f"results/{model}/plans/{plan}/{runtime}/{name}"
        for model, plan in product(settings.models, settings.plans)
        for runtime in settings.models[model].runtimes
        for name in chosen(runtime_named(runtime))
    ]


def artifacts(settings: Settings) -> list[str]:
    """Return the file of every plan in every runtime."""
    return of_runtimes(settings, lambda runtime: [runtime.artifact])


def cards(settings: Settings) -> list[str]:
    """Return the model card of every plan in every runtime."""
    return of_runtimes(settings, lambda runtime: ["README.md"])


def runtime_files(settings: Settings, name: str) -> list[str]:
    """Return one result, as perplexity.json, of every plan in every runtime that has it."""
    return of_runtimes(settings, lambda runtime: [name] if name in runtime.files else [])


def plans_of(settings: Settings, method: str) -> list[str]:
    """Return the names of the plans that a method searches."""
    return [name for name, plan in settings.every_plan.items() if plan.method == method]


def rounded_plans(settings: Settings, methods: Iterable[str]) -> list[str]:
    """Return the names of the plans of some methods whose weights are rounded by a step of their own."""
    return [
        name
        for name, plan in settings.every_plan.items()
        if plan.method in methods and settings.rounding_of(name) != "nearest"
    ]


def of_models(settings: Settings, *names: str) -> list[str]:
    """Return results of every model."""
    return [f"results/{model}/{name}" for model, name in product(settings.models, names)]


def of_plans(settings: Settings, *names: str) -> list[str]:
    """Return results of every plan, for every model."""
    each = product(settings.models, settings.plans, names)
    return [f"results/{model}/plans/{plan}/{name}" for model, plan, name in each]


def of_baselines(settings: Settings, *names: str) -> list[str]:
    """Return results of every baseline, for the models that have some."""
    each = product(with_baselines(settings), settings.baselines, names)
    return [f"results/{model}/baselines/{baseline}/{name}" for model, baseline, name in each]


def comparison_files(settings: Settings) -> list[str]:
    """Return the comparison of every model."""
    return of_models(settings, *COMPARISON)


def study_files(settings: Settings) -> list[str]:
    """Return the tables and figures of every study, for every model."""
    each = product(settings.models, settings.studies, ("tsv", "txt", "svg"))
    return [f"results/{model}/studies/{study}.{end}" for model, study, end in each]
