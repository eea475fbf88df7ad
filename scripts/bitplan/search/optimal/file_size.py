"""The budget of a plan whose file, in one or several runtimes, may have at most a given size."""

from collections.abc import Sequence
from pathlib import Path

from bitplan.core.errors import user_error
from bitplan.core.sizes import in_unit_of, parse_size
from bitplan.runtimes.runtime import Runtime
from bitplan.search.allocation.problem import BYTES, reach
from bitplan.search.optimal.run import OptimalSearch


def budget_of_size(search: OptimalSearch, max_size: str, runtimes: Sequence[Runtime], base: Path | None) -> float:
    """Return the bytes that the table's layers may take so that no runtime's file is larger than `max_size`, as 4GB.

    `base` is what a runtime's file is made from. Raises `UserError` for a runtime whose sizes are not known, and for a size that no choice
    reaches, naming those that can be reached.
    """
    unknown = [runtime.name for runtime in runtimes if runtime.bytes_besides is None]
    if unknown:
        what = f"is a limit on a file's size, and what {unknown[0]} writes beside the layers is not known"
        raise user_error("OPTIMAL-BAD-FLAGS", "--max-size", what, "Give --target-avg-bits")
    model = search.model
    besides = max(
        runtime.bytes_besides(model.checkpoint, model.info, search.table.layers, base) for runtime in runtimes
    )
    low, high = reach(search.problem)[BYTES]
    budget = parse_size(max_size) - besides
    if budget < low * (1 - 1e-9):
        ends = in_unit_of(besides + low, max_size, up=True), in_unit_of(besides + high, max_size)
        what = f"no combination of formats makes a file of at most {max_size}"
        hint = f"The palette allows {ends[0]} to {ends[1]}: choose a size in this range"
        raise user_error("SEARCH-TARGET-OUT-OF-REACH", "--max-size", what, hint)
    return float(budget)
