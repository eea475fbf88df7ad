"""What the page's slider offers for a size: the best file that was made, and the best plan that the table predicts, with its command."""

import shlex
from collections.abc import Sequence
from typing import Any

from bitplan.formats.facts import GGUF_TYPES
from bitplan.models.layers import ModelInfo
from bitplan.report.front import Axes
from bitplan.report.predicted import PredictedPlan, Prediction
from bitplan.report.tables import Row

# The page writes the bits of the chosen plan in this place.
BITS = "{bits}"
# With more layers than these the page would be too large to hold every predicted plan.
MOST_LAYERS = 2000


def _measured(row: Row, axes: Axes) -> dict[str, Any]:
    return {"name": row["name"], "size": row[axes.size], "kl": row[axes.kl], "bytes": row.get("file_bytes")}


def _command(known: Prediction, info: ModelInfo, text: str) -> str:
    """Return the command that makes a GGUF of so many bits; for formats that no GGUF has, the entry of a configuration's plans."""
    if set(known.palette) <= set(GGUF_TYPES):
        return f"bitplan quantize {shlex.join([info.path, '--text', text])} --bits {BITS} -o small.gguf"
    return f"plans: {{mine: {{method: optimal, target_avg_bits: {BITS}, palette: [{', '.join(known.palette)}]}}}}"


def _predicted(plan: PredictedPlan, known: Prediction, overhead: float, whole: bool) -> dict[str, Any]:
    choice = {"choice": list(plan.choice)} if whole else {}
    return {"size": plan.bits + overhead, "bits": plan.bits, "kl": plan.kl, "formats": known.formats(plan), **choice}


def offers(rows: Sequence[Row], axes: Axes, info: ModelInfo) -> dict[str, Any]:
    """Return what was made: the parameters of the model, and size, KL and bytes of each row that has a place on the front."""
    return {"parameters": info.parameters, "measured": [_measured(row, axes) for row in rows if axes.has(row)]}


def predicted_offers(known: Prediction | None, info: ModelInfo, text: str, overhead: float) -> dict[str, Any]:
    """Return what the table predicts: the plans by rising size, the command, and the layers that the plans' choices are of.

    Choices are left out for models with many layers, and where formats are of inputs too.
    """
    if known is None:
        return {}
    whole = len(known.table.layers) <= MOST_LAYERS and set(known.table.formats) <= {*GGUF_TYPES, "bf16"}
    protected = {layer.name for layer in info.layers if layer.protected}
    layers = [{"name": name, "embeddings": name in protected} for name in known.table.layers] if whole else []
    return {
        "predicted": [_predicted(plan, known, overhead, whole) for plan in known.front],
        "command": _command(known, info, text),
        "layers": layers,
        "formats": list(known.table.formats),
    }
