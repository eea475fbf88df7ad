"""Entries of a configuration for the token embedding and the output matrix.

Both are protected. An override with `"embeddings": true` lifts the protection of the layer that its pattern names exactly. Only
their weights are quantized: their inputs are tokens or final hidden states. In their format a row must not depend on other rows,
because only the rows of tokens in use are read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bitplan.core.errors import Problem
from bitplan.formats.base import Format
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.table import PER_CHANNEL
from bitplan.models.layers import Layer


def embedding_problems(
    where: str, entry: Mapping[str, Any], layers: Sequence[Layer], formats: Mapping[str, Format]
) -> list[Problem]:
    """Return the problems of an entry's `embeddings`, and of its formats if that is true."""
    lifted = entry.get("embeddings", False)
    if not isinstance(lifted, bool):
        return [Problem(f"{where}.embeddings", f"{lifted!r} is neither true nor false", "Give true, or leave it out")]
    if not lifted:
        return []
    names = [layer.name for layer in layers if layer.is_embedding]
    hint = f"Name one: {', '.join(names)}" if names else "This model has neither under a name that is known"
    problems = []
    if entry.get("pattern") not in names:
        what = (
            f"{entry.get('pattern', 'the default')!r} is not the whole name of the token embedding or the output matrix"
        )
        problems.append(Problem(f"{where}.embeddings", what, hint))
    if "wq" not in entry and not entry.get("skip"):
        problems.append(Problem(f"{where}.embeddings", "has no wq beside it", 'Give a format, as "wq": "q6_k"'))
    if entry.get("aq", UNQUANTIZED) != UNQUANTIZED:
        what = "what stands outside the blocks has weights only"
        problems.append(Problem(f"{where}.aq", what, "Leave it out"))
    return [*problems, *_rowwise_problems(where, entry.get("wq"), formats)]


def _rowwise_problems(where: str, name: Any, formats: Mapping[str, Format]) -> list[Problem]:
    """Return the problem of a format whose rows depend on each other. Unknown formats are reported elsewhere."""
    form = formats.get(name) if isinstance(name, str) else None
    if form is None or (form.scope != "tensor" and name != PER_CHANNEL):
        return []
    what = f"{name} does not make each row of a matrix by itself"
    return [Problem(f"{where}.wq", what, "Use a GGUF type, an MX format or one of integers, as q6_k")]
