"""Entries of a configuration for the token embedding and the output matrix.

Both are protected. An override with `"embeddings": true` lifts the protection of the layer that its pattern names exactly. Only
their weights are quantized: their inputs are tokens or final hidden states. In their format a row must not depend on other rows,
because only the rows of tokens in use are read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bitplan.core.errors import Problem
from bitplan.formats.base import Format
from bitplan.formats.facts import NEED_IMPORTANCE, UNQUANTIZED
from bitplan.formats.table import PER_CHANNEL
from bitplan.models.layers import Layer


def embedding_problems(
    where: str, entry: Mapping[str, Any], layers: Sequence[Layer], formats: Mapping[str, Format]
) -> list[Problem]:
    """Return the problems of an entry's `embeddings`, and of its formats if that is true."""
    lifted = entry.get("embeddings", False)
    if not isinstance(lifted, bool):
        return [
            Problem(
                "PLAN-NOT-BOOLEAN",
                f"{where}.embeddings",
                f"{lifted!r} is not true or false",
                "Use true, or remove the key",
            )
        ]
    if not lifted:
        return []
    names = [layer.name for layer in layers if layer.is_embedding]
    hint = f"Name one: {', '.join(names)}" if names else "This model has neither under a known name"
    problems = []
    if entry.get("pattern") not in names:
        what = (
            f"{entry.get('pattern', 'the default')!r} is not the full name of the token embedding or the output matrix"
        )
        problems.append(Problem("PLAN-EMBEDDINGS-NAME", f"{where}.embeddings", what, hint))
    if "wq" not in entry and not entry.get("skip"):
        problems.append(
            Problem("PLAN-EMBEDDINGS-NO-FORMAT", f"{where}.embeddings", "has no wq", 'Add a format, e.g. "wq": "q6_k"')
        )
    if entry.get("aq", UNQUANTIZED) != UNQUANTIZED:
        what = "embeddings have no quantized inputs"
        problems.append(Problem("PLAN-EMBEDDINGS-INPUTS", f"{where}.aq", what, "Remove it"))
    return [*problems, *_rowwise_problems(where, entry.get("wq"), formats)]


def _rowwise_problems(where: str, name: Any, formats: Mapping[str, Format]) -> list[Problem]:
    """Return the problem of a format whose rows depend on each other, or that needs importance. Unknown formats are reported elsewhere."""
    form = formats.get(name) if isinstance(name, str) else None
    if form is None or (form.rows_are_independent and name not in (PER_CHANNEL, *NEED_IMPORTANCE)):
        return []
    what = f"{name} does not quantize the rows of a matrix independently"
    if name in NEED_IMPORTANCE:
        what = f"{name} needs an importance matrix, which embeddings do not have"
    return [
        Problem(
            "PLAN-EMBEDDINGS-FORMAT",
            f"{where}.wq",
            what,
            "Use a GGUF type, an MX format or an integer format, e.g. q6_k",
        )
    ]
