"""The verdicts of a runtime on every layer of a plan, and the plans that it refuses."""

from bitplan.core.errors import Problem, UserError
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import Plan
from bitplan.runtimes.runtime import Runtime, Verdict

HINT = "Choose another format for it, or another runtime"


def plan_verdicts(runtime: Runtime, plan: Plan, info: ModelInfo) -> dict[str, Verdict]:
    """Return {layer: verdict} for every layer that a plan may change, and for the embeddings that it does."""
    layers = (*info.quantizable, *plan.embeddings(info))
    return {layer.name: runtime.verdict(layer, plan.of(layer.name), info) for layer in layers}


def refuse_unheld(runtime: Runtime, plan: Plan, info: ModelInfo) -> None:
    """Raise `UserError` naming every layer that the runtime cannot hold."""
    problems = [
        Problem(
            "RUNTIME-REFUSED",
            f"{name} in {plan.of(name).wq}",
            f"cannot be written for {runtime.name}: {verdict.reason}",
            HINT,
        )
        for name, verdict in plan_verdicts(runtime, plan, info).items()
        if verdict.status == "refused"
    ]
    if problems:
        raise UserError(problems)
