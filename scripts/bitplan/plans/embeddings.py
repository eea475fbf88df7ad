"""Entries of a configuration for what stands outside the blocks: the token embedding and the output matrix.

They are protected. An override with `"embeddings": true` lifts that for the one layer that its pattern names exactly. Their inputs are
tokens, or the states that the model's figures are compared by: only their weights are quantized. Every format here has to be one of
rows: a row's values may not depend on other rows, since only those of tokens in use are ever looked at.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bitplan.core.errors import Problem
from bitplan.formats.base import Format
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.table import CHANNELS
from bitplan.models.layers import Layer


def embedding_problems(
    where: str, entry: Mapping[str, Any], layers: Sequence[Layer], formats: Mapping[str, Format]
) -> list[Problem]:
    """Return what is wrong with an entry's `embeddings`, and with its formats where it is true."""
    asked = entry.get("embeddings", False)
    if not isinstance(asked, bool):
        return [
            Problem(
                "PLAN-NOT-BOOLEAN",
                f"{where}.embeddings",
                f"{asked!r} is not true or false",
                "Use true, or remove the key",
            )
        ]
    if not asked:
        return []
    names = [layer.name for layer in layers if layer.is_embedding]
    told = f"Name one: {', '.join(names)}" if names else "This model has neither under a known name"
    problems = []
    if entry.get("pattern") not in names:
        what = (
            f"{entry.get('pattern', 'the default')!r} is not the full name of the token embedding or the output matrix"
        )
        problems.append(Problem("PLAN-EMBEDDINGS-NAME", f"{where}.embeddings", what, told))
    if "wq" not in entry and not entry.get("skip"):
        problems.append(
            Problem("PLAN-EMBEDDINGS-NO-FORMAT", f"{where}.embeddings", "has no wq", 'Add a format, e.g. "wq": "q6_k"')
        )
    if entry.get("aq", UNQUANTIZED) != UNQUANTIZED:
        what = "embeddings have no quantized inputs"
        problems.append(Problem("PLAN-EMBEDDINGS-INPUTS", f"{where}.aq", what, "Remove it"))
    return [*problems, *_rowwise_problems(where, entry.get("wq"), formats)]


def _rowwise_problems(where: str, name: Any, formats: Mapping[str, Format]) -> list[Problem]:
    """Return the problem of a format that does not make each row by itself. Unknown ones are told elsewhere."""
    form = formats.get(name) if isinstance(name, str) else None
    if form is None or (form.scope != "tensor" and name != CHANNELS):
        return []
    what = f"{name} does not quantize the rows of a matrix independently"
    return [
        Problem(
            "PLAN-EMBEDDINGS-FORMAT",
            f"{where}.wq",
            what,
            "Use a GGUF type, an MX format or an integer format, e.g. q6_k",
        )
    ]
