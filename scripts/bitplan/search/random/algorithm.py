"""Random mixed precision: experts to mxfp4 and attention to bf16 first, the rest by lot, everything else mxfp8."""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bitplan.core.errors import Problem, UserError
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.plan import LayerPlan, Plan, average_bits

DEFAULT_FORMAT = "mxfp8"


@dataclass(frozen=True)
class RandomSettings:
    """Shares of the unprotected layers asked for in mxfp4 and bf16, values per block, and the seed."""

    mxfp4_ratio: float = 0.3
    bf16_ratio: float = 0.2
    group_size: int = 32
    seed: int = 42

    def check(self) -> None:
        """Raise `UserError` unless the ratios leave a share of 0 or more."""
        if self.mxfp4_ratio + self.bf16_ratio > 1 + 1e-12:
            total = self.mxfp4_ratio + self.bf16_ratio
            raise UserError(
                [
                    Problem(
                        "RANDOM-RATIOS",
                        "--mxfp4-ratio and --bf16-ratio",
                        f"add up to {total:g}, more than 1",
                        "Lower one of them",
                    )
                ]
            )


def choose_formats(layers: tuple[Layer, ...], settings: RandomSettings) -> dict[str, str]:
    """Return {layer: weight format} over the quantizable layers, drawn as the settings say; the same seed, the same draw."""
    rng = random.Random(settings.seed)
    names = [layer.name for layer in layers]
    kinds = {layer.name: layer.kind for layer in layers}
    n4, n16 = int(len(names) * settings.mxfp4_ratio), int(len(names) * settings.bf16_ratio)
    experts = [name for name in names if kinds[name] == "expert"]
    attention = [name for name in names if kinds[name] == "attention"]
    first4 = rng.sample(experts, min(n4, len(experts)))
    first16 = rng.sample(attention, min(n16, len(attention)))
    left = [name for name in names if name not in {*first4, *first16}]
    more4 = rng.sample(left, min(n4 - len(first4), len(left)))
    left = [name for name in left if name not in set(more4)]
    more16 = rng.sample(left, min(n16 - len(first16), len(left)))
    chosen = dict.fromkeys(names, DEFAULT_FORMAT)
    chosen.update(dict.fromkeys(first4 + more4, "mxfp4"))
    chosen.update(dict.fromkeys(first16 + more16, "bf16"))
    return chosen


def _summary(chosen: dict[str, str], settings: RandomSettings) -> dict[str, Any]:
    held, total = Counter(chosen.values()), len(chosen)
    counts = {f"{name}_layers": held[name] for name in ("mxfp4", "bf16", "mxfp8")}
    reached = {f"{name}_ratio": held[name] / total for name in ("mxfp4", "bf16", "mxfp8")}
    requested = {"requested_mxfp4_ratio": settings.mxfp4_ratio, "requested_bf16_ratio": settings.bf16_ratio}
    return {
        "method": "random",
        "total_layers": total,
        **counts,
        **reached,
        **requested,
        "group_size": settings.group_size,
        "seed": settings.seed,
        "cost": {"block_forward_tokens": 0, "evaluations": 0},
    }


def random_plan(info: ModelInfo, settings: RandomSettings) -> Plan:
    """Return the random plan of a model. Raises `UserError` when the ratios exceed 1 together."""
    settings.check()
    chosen = choose_formats(info.quantizable, settings)
    layers = {}
    for layer in info.layers:
        form = chosen.get(layer.name, "bf16")
        notes = {"category": layer.kind if not layer.protected else layer.category, "precision": form}
        layers[layer.name] = (
            LayerPlan(form, form, settings.group_size, notes) if form != "bf16" else LayerPlan(notes=notes)
        )
    plan = Plan(layers, _summary(chosen, settings))
    bits = average_bits(plan, info)
    return Plan(layers, {**plan.summary, "avg_bits": bits.avg_bits, "avg_bits_layers": bits.avg_bits_layers})
