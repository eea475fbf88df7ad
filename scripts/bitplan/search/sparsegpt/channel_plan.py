"""The plan of a compressed model: each layer's size as it is stored, and what the run was."""

from collections.abc import Mapping
from typing import Any

from bitplan.formats.table import PER_CHANNEL
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import UNQUANTIZED_BITS, LayerPlan, Plan
from bitplan.search.sparsegpt.model import CompressedModel
from bitplan.search.sparsegpt.settings import ModelSettings


def channel_plan(made: CompressedModel, info: ModelInfo, settings: ModelSettings, cost: Mapping[str, int]) -> Plan:
    """Return the plan of compressed layers: each stored as a bitmap and codes, or as all codes, whichever of both takes less in all."""
    dense, bitmap = (sum(row[key] for row in made.rows) for key in ("bits_dense", "bits_bitmap"))
    key = "bits_bitmap" if bitmap < dense else "bits_dense"
    layers = {layer.name: LayerPlan(notes={"category": layer.category}) for layer in info.layers}
    for row in made.rows:
        notes = {"category": row["category"]}
        layers[row["layer"]] = LayerPlan(PER_CHANNEL, notes=notes, stored_bits=row[key])
    return Plan(
        layers, _summary(made, info, settings, {"dense": dense, "bitmap": bitmap}, cost), compressed=made.compressed
    )


def _summary(
    made: CompressedModel, info: ModelInfo, settings: ModelSettings, bits: Mapping[str, int], cost: Mapping[str, int]
) -> dict[str, Any]:
    inside = sum(layer.params for layer in info.quantizable)
    outside = UNQUANTIZED_BITS * (info.parameters - inside)
    return {
        "method": "sparsegpt",
        "allocation": settings.method if settings.quantize else None,
        "target_channel_bits": list(settings.targets),
        "mean_channel_bits": made.stats.avg_bits if made.stats.layers else float(UNQUANTIZED_BITS),
        "channels": {str(width): number for width, number in made.stats.counts.items()},
        "sparsity": sum(row["pruned"] for row in made.rows) / inside,
        **{f"avg_bits_{how}": (stored + outside) / info.parameters for how, stored in bits.items()},
        **{f"avg_bits_layers_{how}": stored / inside for how, stored in bits.items()},
        "stored_as": min(bits, key=bits.get),
        "weights": dict(settings.channels.weights),
        "bit_options": list(settings.channels.bit_options),
        "compensate": settings.compensate,
        "cost": {"evaluations": 0, **cost},
    }
