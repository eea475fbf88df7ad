"""Which files the workflow's targets ask for."""

from collections.abc import Iterable
from itertools import product

from bitplan.config.settings import Settings

COMPARISON = ("comparison.tsv", "comparison.txt", "comparison.html", "comparison.svg")


def with_gguf(settings: Settings) -> list[str]:
    """Return the names of the models whose plans become GGUF files."""
    return [name for name, model in settings.models.items() if model.gguf]


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


def of_plans(settings: Settings, *names: str, models: Iterable[str] | None = None) -> list[str]:
    """Return results of every plan, for some models or for all."""
    each = product(settings.models if models is None else models, settings.plans, names)
    return [f"results/{model}/plans/{plan}/{name}" for model, plan, name in each]


def of_baselines(settings: Settings, *names: str) -> list[str]:
    """Return results of every baseline, for the models that become GGUF files."""
    each = product(with_gguf(settings), settings.baselines, names)
    return [f"results/{model}/baselines/{baseline}/{name}" for model, baseline, name in each]


def comparison_files(settings: Settings) -> list[str]:
    """Return the comparison of every model."""
    return of_models(settings, *COMPARISON)


def study_files(settings: Settings) -> list[str]:
    """Return the tables and figures of every study, for every model."""
    each = product(settings.models, settings.studies, ("tsv", "txt", "svg"))
    return [f"results/{model}/studies/{study}.{end}" for model, study, end in each]
