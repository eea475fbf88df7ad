"""The steps of a model and their work, counted from its description and the settings."""

from collections.abc import Iterator

from bitplan.workflow.estimate.case import OPENED, PAGE, TORCH, Case, Step, added
from bitplan.workflow.estimate.file_steps import of_files
from bitplan.workflow.estimate.plan_steps import of_plan
from bitplan.workflow.estimate.table_steps import LOOKED_AT, of_table


def of_model(case: Case) -> Iterator[Step]:
    """Yield the steps that every model has."""
    hashing = {**OPENED, "read": 2.0 * case.info.parameters * case.stored}
    yield Step("model", 1, hashing, held=0.0, disk=1e5)
    layers, tokens = case.info.quantizable, case.of("calibration")
    small = [min(layer.shape) for layer in layers]
    products = sum(rows * layer.params for rows, layer in zip(small, layers, strict=True))
    statistics = {
        "multiply": float(products),
        "eigenvalues": float(sum(rows**3 for rows in small)),
        "moment": LOOKED_AT * tokens * sum(layer.shape[1] for layer in layers),
    }
    told = {
        "layer_stats": ("calibration", statistics),
        "validation": ("validation", {}),
        "evaluation": ("evaluation", {}),
    }
    for rule, (text, more) in told.items():
        if rule == "validation" and not any(_decides(plan) for plan in case.settings.every_plan.values()):
            continue
        work = added(OPENED, {"text": 1}, case.walk(case.of(text)), more)
        yield Step(rule, 1, work, case.walk_memory(text), case.states(text))


def _decides(plan: object) -> bool:
    return getattr(plan, "correct", False) or getattr(plan, "refine", False)


def steps_of(case: Case) -> list[Step]:
    """Return every step of a model up to its comparison, in about the order in which they run."""
    plans = [step for name in case.settings.plans for step in of_plan(case, name)]
    page = Step("comparison", 1, added(TORCH, PAGE), 128e6, 2e6)
    return [*of_model(case), *of_files(case), *of_table(case), *plans, page]
