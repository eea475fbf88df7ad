"""What a configuration leaves out and what follows from the rest: the bundled demo where nobody names models or plans, the recipes
whose size a plan is to have, the formats that plans choose from.

It works on the mapping that YAML gives, before the settings are validated, so that whatever is wrong with it is still said there.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bitplan.config.runtime_palettes import DEFAULT_RUNTIMES, held_embeddings, named_runtimes, with_runtime_palettes
from bitplan.runtimes.gguf.recipe_names import BASELINES, IMATRIX_SUFFIX, spelt
from bitplan.search.plan_settings import OF_RUNTIMES, as_palette
from bitplan.search.registry import METHODS

DEMO_FILE = Path("demo") / "config.yaml"
# What a model is compared in where a configuration names no plan.
DEFAULT_PLANS = {"optimal-q4": {"method": "optimal", "same_size_as": "q4_k_m", "rounding": "feedback"}}
SECTIONS = ("models", "plans", "studies")
EMBEDDINGS = ("q4_k", "q5_k", "q6_k", "q8_0")
Config = Mapping[str, Any]


def demo_config(workflow: Path) -> dict[str, Any]:
    """Return the configuration of the bundled demo; an empty one where the workflow was copied without it."""
    path = workflow / DEMO_FILE
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {"models": {}}


def _named(config: Config, section: str) -> bool:
    """Return whether a configuration has entries in a section; those set to null are none."""
    entries = config.get(section)
    return isinstance(entries, Mapping) and any(value is not None for value in entries.values())


def _below(lower: Config, upper: Config) -> dict[str, Any]:
    """Return a configuration laid over another: mappings merge, all else is replaced."""
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, Mapping) and isinstance(lower.get(key), Mapping)
        merged[key] = _below(lower[key], value) if both else value
    return merged


def with_models_and_plans(config: Config, workflow: Path) -> dict[str, Any]:
    """Return the configuration with the demo under it where it names neither models nor plans of its own.

    With plans alone these are tried on the demo's model; with models alone each is compared in one optimal plan. Settings of the demo's
    own model, by its name, change that model.
    """
    own = {key: value for key, value in config.items() if key not in SECTIONS or _named(config, key) or value}
    demo = demo_config(workflow)
    if set(own.get("models") or {}) - set(demo["models"]):
        return own if "plans" in own else {**own, "plans": _default_plans(own)}
    return _below({"models": demo["models"]} if "plans" in own else demo, own)


def _default_plans(config: Config) -> dict[str, Any]:
    """Return the plans of models that come without any: of GGUF types, or of what all runtimes hold where others are named."""
    palette = {} if set(named_runtimes(config)) <= set(DEFAULT_RUNTIMES) else {"palette": OF_RUNTIMES}
    return {name: {**plan, **palette} for name, plan in DEFAULT_PLANS.items()}


def _plans(config: Config) -> list[Config]:
    """Return the settings of all plans, those of studies included, as far as they have the form of plans."""
    studies = [study for study in (config.get("studies") or {}).values() if isinstance(study, Mapping)]
    every = [*(config.get("plans") or {}).values(), *(study.get("plan") for study in studies)]
    return [plan for plan in every if isinstance(plan, Mapping) and plan.get("method") in METHODS]


def _value(plan: Config, key: str) -> Any:
    """Return a plan's setting, or its method's default; None where the method lacks it."""
    field = METHODS[plan["method"]].settings.model_fields.get(key)
    return plan.get(key, field.get_default(call_default_factory=True)) if field else None


def _in_order(*groups: Iterable[Any]) -> list[Any]:
    """Return all values once, in the order of their first appearance."""
    return list(dict.fromkeys(value for group in groups for value in group))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def with_recipes(config: Config) -> dict[str, Any]:
    """Return the configuration with each recipe among its baselines whose size a plan is to have.

    Where it names no baselines these are f16 and those recipes, each with and without importance matrix.
    """
    named = _in_order(spelt(_value(plan, "same_size_as")) for plan in _plans(config))
    # What is no recipe is said of the plan, not of the baselines.
    wanted = [name for name in named if name in BASELINES]
    baselines = config.get("baselines")
    if isinstance(baselines, list):
        return {**config, "baselines": _in_order(map(spelt, baselines), wanted)}
    both = [
        name
        for recipe in wanted
        for name in (recipe, recipe if recipe.endswith(IMATRIX_SUFFIX) else recipe + IMATRIX_SUFFIX)
    ]
    return {**config, "baselines": _in_order(["f16"], both)} if wanted and baselines is None else dict(config)


def with_formats(config: Config) -> dict[str, Any]:
    """Return the configuration with the sensitivity of every format that a plan may choose.

    Formats of the embedding and the output matrix are added where a plan is optimal, the configuration does not say which, and some
    model's runtimes store them.
    """
    plans, section = _plans(config), config.get("sensitivity")
    sensitivity = dict(section) if isinstance(section, Mapping) else {}
    palettes = [[name for name in _list(as_palette(_value(plan, "palette"))) if name != OF_RUNTIMES] for plan in plans]
    if any(palettes):
        sensitivity["palette"] = _in_order(_list(sensitivity.get("palette")), *palettes)
    if any(plan["method"] == "optimal" for plan in plans) and sensitivity.get("embeddings") is None:
        sensitivity["embeddings"] = held_embeddings(config, EMBEDDINGS)
    return {**config, "sensitivity": sensitivity} if sensitivity else dict(config)


def completed(config: Config, workflow: Path) -> dict[str, Any]:
    """Return a configuration with all that follows from it; as it is where a section is not a mapping. workflow: the demo's folder."""
    sections = (config.get(name) for name in (*SECTIONS, "sensitivity"))
    if not all(section is None or isinstance(section, Mapping) for section in sections):
        return dict(config)
    return with_formats(with_runtime_palettes(with_recipes(with_models_and_plans(config, workflow))))
