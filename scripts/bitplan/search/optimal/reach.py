"""Which average bits an optimal plan can have: known from shapes alone, before anything is measured. Needs no torch.

The search's own bounds on a table that has its sizes and no KL: each layer in what fits its rows, the embeddings in the formats that are
measured for them, what runtimes refuse left out, layers that share a format together.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from bitplan.core.errors import Problem
from bitplan.core.sizes import in_unit_of, parse_size
from bitplan.formats.fitting import fitting_formats
from bitplan.models.layers import ModelInfo
from bitplan.plans.layer_plan import UNQUANTIZED_BITS
from bitplan.runtimes.runtime import Runtime
from bitplan.search.allocation.constraints import Constraints
from bitplan.search.allocation.problem import BYTES, AllocationProblem, allocation_problem, reach
from bitplan.search.optimal.candidates import chosen_table, sharing
from bitplan.search.optimal.held import held_table, shared_in
from bitplan.search.reach import bits_of_layer, not_reached
from bitplan.sensitivity.table import SensitivityTable


def layer_budget(target_avg_bits: float, table: SensitivityTable, info: ModelInfo) -> float:
    """Return the bytes that the table's layers may take when all parameters are to average so many bits; the rest has 16."""
    rest = info.parameters - float(table.params.sum())
    return (target_avg_bits * info.parameters - UNQUANTIZED_BITS * rest) / 8


def out_of_reach(problem: AllocationProblem, info: ModelInfo, target_avg_bits: float) -> Problem | None:
    """Return the problem of a target that no choice of formats reaches, with the range that they allow; None for one that is reached."""
    ends = reach(problem)[BYTES]
    budget = layer_budget(target_avg_bits, problem.table, info)
    if budget >= ends[0] * (1 - 1e-9):
        return None
    low, high = (target_avg_bits + 8 * (end - budget) / info.parameters for end in ends)
    return not_reached(low, high, target_avg_bits, "target_avg_bits")


def file_out_of_reach(problem: AllocationProblem, info: ModelInfo, max_size: str) -> Problem | None:
    """Return the problem of a file's size, as 4GB, that the weights alone exceed; None for one that may be reached, of which the search knows
    the rest of the file, too."""
    rest = UNQUANTIZED_BITS / 8 * (info.parameters - float(problem.table.params.sum()))
    low, high = (end + rest for end in reach(problem)[BYTES])
    if parse_size(max_size) >= low * (1 - 1e-9):
        return None
    ends = in_unit_of(low, max_size, up=True), in_unit_of(high, max_size)
    hint = f"The weights take {ends[0]} to {ends[1]}, and headers, vocabulary and tokenizer come on top: choose a larger size"
    return Problem("SEARCH-TARGET-OUT-OF-REACH", "max_size", f"no combination of formats fits into {max_size}", hint)


def table_of_shapes(info: ModelInfo, palette: Sequence[str], embeddings: Iterable[str] = ()) -> SensitivityTable:
    """Return a table with the rows and sizes in bytes that a measured one has, and 0 for every KL.

    Layers inside blocks have the palette's formats that fit their rows; the token embedding and the output matrix, a tied one once, those of
    `embeddings`.
    """
    outside = {layer.name for layer in info.layers if layer.is_embedding and not layer.tied}
    chosen = [layer for layer in info.layers if not layer.protected or layer.name in outside]
    own = [fitting_formats(embeddings if layer.protected else palette, layer.shape[1]) for layer in chosen]
    rows = [(layer, formats) for layer, formats in zip(chosen, own, strict=True) if formats]
    formats = tuple(dict.fromkeys(form for _, forms in rows for form in forms))
    size, kld = np.zeros((len(rows), len(formats))), np.full((len(rows), len(formats)), np.inf)
    for row, (layer, forms) in enumerate(rows):
        for column, form in ((formats.index(form), form) for form in forms):
            size[row, column], kld[row, column] = math.ceil(bits_of_layer(form, layer) / 8), 0.0
    params = np.array([float(layer.params) for layer, _ in rows])
    names, categories = ([getattr(layer, key) for layer, _ in rows] for key in ("name", "category"))
    return SensitivityTable(tuple(names), formats, params, size, kld, tuple(categories))


def problem_of_shapes(
    info: ModelInfo,
    palette: Sequence[str],
    embeddings: Iterable[str] = (),
    runtimes: Sequence[Runtime] = (),
    stored: bool = False,
    groups: str | None = None,
) -> AllocationProblem:
    """Return the problem that the search solves on a model, with 0 for every KL: what it reaches is what the search reaches.

    runtimes, stored, groups: as `searched` of `search/optimal/command.py` has them.
    """
    table = chosen_table(table_of_shapes(info, palette, embeddings), palette, info, "the palette")
    if runtimes:
        table = held_table(table, runtimes, info, stored)
    shared = sharing(palette, info, table.layers, groups or shared_in(runtimes))
    return allocation_problem(table, Constraints(shared))
