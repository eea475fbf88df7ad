"""Layers that a runtime stores as one matrix (q, k and v; gate and up; the experts of a projection), and plans in which they differ."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from bitplan.core.errors import Problem, UserError
from bitplan.models.families import merged_name
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.runtimes.runtime import Fuses, Verdict

OWN = " with its own scale"


@dataclass(frozen=True)
class FusionGroup:
    """Layers that must have one stored type, and the verdict on each."""

    name: str
    layers: tuple[Layer, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def agrees(self) -> bool:
        """Whether all layers have one stored type, which they can share."""
        one_type = len({verdict.stored_type for verdict in self.verdicts}) == 1
        return one_type and not any(verdict.shared_form for verdict in self.verdicts)

    @property
    def widest(self) -> int:
        """The place of the layer with most stored bits per weight; of equals the first."""
        bits = [verdict.stored_bits for verdict in self.verdicts]
        return bits.index(max(bits))

    @property
    def extra_bits(self) -> float:
        """What it costs in bits that all layers have the widest type."""
        most = self.verdicts[self.widest].stored_bits
        pairs = zip(self.layers, self.verdicts, strict=True)
        return sum(layer.params * (most - verdict.stored_bits) for layer, verdict in pairs)

    @property
    def summary(self) -> str:
        """The layers' last names with their types, as "q_proj int4 g128, k_proj mxfp8 g32"."""
        pairs = zip(self.layers, self.verdicts, strict=True)
        return ", ".join(
            f"{layer.name.rpartition('.')[2]} {verdict.stored_type or verdict.status}{OWN * bool(verdict.shared_form)}"
            for layer, verdict in pairs
        )


# verdict(layer, its plan, model), as of a runtime
Judge = Callable[[Layer, LayerPlan, ModelInfo], Verdict]


def fusion_groups(verdict: Judge, plan: Plan, info: ModelInfo, fuses: Fuses = "all") -> list[FusionGroup]:
    """Return the groups of two layers or more that a runtime stores as one, with what it makes of them under a plan."""
    members: dict[str, list[Layer]] = {}
    for layer in info.quantizable if fuses else ():
        if layer.fusion_group and (fuses == "all" or merged_name(layer.name) != layer.name):
            members.setdefault(layer.fusion_group, []).append(layer)
    return [
        FusionGroup(name, tuple(layers), tuple(verdict(each, plan.of(each.name), info) for each in layers))
        for name, layers in members.items()
        if len(layers) > 1
    ]


def unlike(groups: Iterable[FusionGroup]) -> list[FusionGroup]:
    """Return the groups whose layers have more than one stored type."""
    return [group for group in groups if not group.agrees]


def repaired(plan: Plan, groups: Sequence[FusionGroup]) -> Plan:
    """Return the plan in which every layer of a group has the weight format of the widest, or the one that it has in its place where
    layers are stored as one; inputs stay as they are.
    """
    changed = {}
    for group in groups:
        widest = plan.of(group.layers[group.widest].name)
        form = group.verdicts[group.widest].shared_form or widest.wq
        for layer in group.layers:
            own = plan.of(layer.name)
            changed[layer.name] = replace(own, wq=form, group_size=widest.group_size)
    return replace(plan, layers={**plan.layers, **changed})


def refuse_unlike(runtime: str, groups: Sequence[FusionGroup]) -> None:
    """Raise `UserError` naming every group whose layers have more than one stored type."""
    hint = "Give them one format, or set export.fusion: repair"
    if groups:
        raise UserError(
            Problem(
                "RUNTIME-FUSION-DIFFERS",
                group.name,
                f"is one matrix in {runtime}, and its layers differ: {group.summary}",
                hint,
            )
            for group in groups
        )
