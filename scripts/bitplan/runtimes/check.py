"""How well a runtime holds a plan: the verdict on every layer, the groups that it stores as one, and the bits that it stores."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bitplan.core.tables import Column, text_table
from bitplan.formats.table import IN_PLANS
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.runtimes.fusion import fusion_groups, unlike
from bitplan.runtimes.runtime import Runtime
from bitplan.runtimes.verdicts import plan_verdicts

COLUMNS = (
    *(Column("layer", "layer"), Column("format", "format", left=True), Column("inputs", "inputs", left=True)),
    *(Column("verdict", "verdict", left=True), Column("stored", "stored as", left=True)),
    *(Column("stored_bits", "bits", "{:.3f}"), Column("why", "why", left=True)),
)


def check_plan(runtime: Runtime, plan: Plan, info: ModelInfo) -> dict[str, Any]:
    """Return the verdict on every layer, what differs in groups that the runtime stores as one, and the average bits of the layers.

    `stored_bits` counts the layers as the verdicts have them, groups not repaired; `plan_bits` as their formats do.
    """
    verdicts, layers = plan_verdicts(runtime, plan, info), {layer.name: layer for layer in info.layers}
    rows = [
        {
            "layer": name,
            "format": _format(plan.of(name)),
            "inputs": plan.of(name).aq,
            "verdict": verdict.status,
            "stored": verdict.stored_type,
            "stored_bits": verdict.stored_bits,
            "why": verdict.reason,
        }
        for name, verdict in verdicts.items()
    ]
    params = sum(layers[name].params for name in verdicts)
    groups = unlike(fusion_groups(runtime.verdict, plan, info, runtime.fuses))
    return {
        "runtime": runtime.name,
        "layers": rows,
        "verdicts": dict(Counter(row["verdict"] for row in rows)),
        "plan_bits": sum(_plan_bits(plan.of(name), layers[name].shape) for name in verdicts) / params,
        "stored_bits": sum(verdict.stored_bits * layers[name].params for name, verdict in verdicts.items()) / params,
        "groups": [{"group": each.name, "layers": each.summary, "extra_bits": each.extra_bits} for each in groups],
    }


def _format(made: LayerPlan) -> str:
    return made.wq if made.group_size is None else f"{made.wq} g{made.group_size}"


def _plan_bits(made: LayerPlan, shape: tuple[int, int]) -> float:
    return made.stored_bits or IN_PLANS[made.wq].bits_of(shape, made.group_size)


def print_check(report: Mapping[str, Any]) -> None:
    """Print a line for each layer and for each group that has to agree, then the sums."""
    shown = [
        {
            **row,
            "verdict": row["verdict"].replace("_", " "),
            "stored": row["stored"] or None,
            "stored_bits": row["stored_bits"] or None,
        }
        for row in report["layers"]
    ]
    print(text_table(shown, COLUMNS))
    for group in report["groups"]:
        cost = f"the widest for all costs {group['extra_bits'] / 8:,.0f} bytes"
        print(f"{group['group']} is stored as one matrix, and its layers differ ({group['layers']}): {cost}")
    counts = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in report["verdicts"].items())
    print(
        f"{report['runtime']}: {counts}; {report['stored_bits']:.3f} bits per weight of the layers, {report['plan_bits']:.3f} in the plan"
    )
