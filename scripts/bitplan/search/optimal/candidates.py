"""What the optimal search chooses from: the rows of a table that a palette allows, and which layers share a format."""

from collections.abc import Sequence

import numpy as np

from bitplan.core.errors import Problem, UserError
from bitplan.formats.facts import GGUF_TYPES
from bitplan.formats.fitting import fitting_format, fitting_formats
from bitplan.models.families import merged_name
from bitplan.models.layers import Layer, ModelInfo
from bitplan.sensitivity.table import SensitivityTable, check_known


def sharing(palette: Sequence[str], info: ModelInfo, layers: Sequence[str], kind: str | None = None) -> tuple[str, ...]:
    """Return the group of each layer of a table, "" for a layer alone.

    `kind` is "experts", "fusion" or "none"; None: experts where the palette is of GGUF types, fusion groups elsewhere.
    """
    kind = kind or ("experts" if set(palette) <= set(GGUF_TYPES) else "fusion")
    known = {layer.name: layer for layer in info.layers}
    chosen = (known.get(name) for name in layers)
    return tuple(
        layer.fusion_group if layer and (kind == "fusion" or _is_merged(layer, kind)) else "" for layer in chosen
    )


def _is_merged(layer: Layer, kind: str) -> bool:
    """Return whether layers that a file stores as one tensor are a group, and this is one of them; a shared expert is not."""
    return kind == "experts" and layer.fusion_group == merged_name(layer.name)


def chosen_table(table: SensitivityTable, palette: Sequence[str], info: ModelInfo, source: object) -> SensitivityTable:
    """Return the table's palette for the layers of the model, each with the formats of it that fit its rows.

    Layers outside the blocks have all that was measured for them. Raises `UserError` where a format or a layer is absent.
    """
    columns = {layer.name: layer.shape[1] for layer in info.quantizable}
    own = {name: fitting_formats(palette, length) for name, length in columns.items()}
    problems = [
        Problem(
            "SENSITIVITY-NO-FORMAT",
            f"--palette {form}",
            f"has no rows in {source}",
            f"It has {', '.join(table.formats)}",
        )
        for form in palette
        if all(fitting_format(form, length) not in table.formats for length in columns.values())
    ]
    absent = [name for name in columns if name not in table.layers]
    if absent:
        problems.append(
            Problem(
                "SENSITIVITY-NO-ROW",
                str(source),
                f"has no rows for {absent[0]}",
                "Create it again with scripts/sensitivity.py",
            )
        )
    if problems:
        raise UserError(problems)
    check_known(table.layers, info, source)
    may = np.array([[name not in own or form in own[name] for form in table.formats] for name in table.layers])
    return table.limited(may, (*palette, *(form for forms in own.values() for form in forms)))
