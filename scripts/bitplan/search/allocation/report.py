"""What an allocation gives: front.json with the plan of every target, and a table for the terminal."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitplan.core.tables import Column, text_table
from bitplan.search.allocation.constraints import Constraints
from bitplan.search.allocation.problem import AVG_BITS, BYTES, KLD, Allocation, AllocationProblem, Target, reach

MIB = 2**20
COLUMNS = (
    Column("target", "target"),
    Column("avg_bits_layers", "avg bits", "{:.4f}"),
    Column("mib", "MiB", "{:,.2f}"),
    Column("kld", "kld", "{:.7g}"),
    Column("bound", "lower bound"),
    Column("gap", "gap", "{:.2g} %"),
    Column("counts", "layers by format", left=True),
)
# A target as the table shows it, by kind.
SHOWN = {
    AVG_BITS: lambda limit: f"{limit:.6g} bits",
    BYTES: lambda limit: f"{limit / MIB:.6g} MiB",
    KLD: lambda limit: f"kld {limit:.6g}",
}
BOUNDS = {"kld": lambda bound: f"{bound:.7g}", "bytes": lambda bound: f"{bound / MIB:,.2f} MiB"}


def targets_of(bits: Iterable[float], sizes: Iterable[float], klds: Iterable[float]) -> list[Target]:
    """Return the targets of average bits, bytes and damages, in this order."""
    limits = ((AVG_BITS, bits), (BYTES, sizes), (KLD, klds))
    return [Target(kind, float(limit)) for kind, held in limits for limit in held]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _record(made: Allocation, sources: dict[str, int]) -> dict[str, Any]:
    target = {made.target.kind: made.target.limit, "minimized": made.target.minimized}
    figures = {"kld": made.kld, "bytes": made.bytes, "avg_bits_layers": made.avg_bits_layers}
    proof = {"lower_bound": made.lower_bound, "gap": made.gap, "exact": made.exact}
    origin = {"kld_from": sources} if sources else {}
    return {"target": target, **figures, **origin, **proof, "counts": made.counts, "plan": dict(made.plan)}


def front(
    problem: AllocationProblem, constraints: Constraints, made: Sequence[Allocation], inputs: dict[str, str]
) -> dict[str, Any]:
    """Return the content of front.json; `inputs` are the digests of the files that it was made from."""
    bound = {name: [rule.where for rule in getattr(constraints, name)] for name in ("protect", "floor")}
    groups = len(set(filter(None, constraints.groups)))
    return {
        "inputs": {**inputs, **bound, "groups": groups},
        "layers": len(problem.table.layers),
        "params": int(problem.params),
        "reach": {kind: list(ends) for kind, ends in reach(problem).items()},
        "allocations": [_record(each, problem.table.counts_by_source(each.plan)) for each in made],
    }


def _row(made: Allocation, formats: Sequence[str]) -> dict[str, Any]:
    return {
        "target": SHOWN[made.target.kind](made.target.limit),
        "avg_bits_layers": made.avg_bits_layers,
        "mib": made.bytes / MIB,
        "kld": made.kld,
        "bound": BOUNDS[made.target.minimized](made.lower_bound),
        "gap": 100 * made.gap,
        "counts": ", ".join(f"{form} {made.counts[form]:,}" for form in formats if form in made.counts),
    }


def printed(problem: AllocationProblem, constraints: Constraints, made: Iterable[Allocation]) -> Iterator[str]:
    """Yield how many groups there are, if any, and the table of some allocations; formats in the sensitivity table's order."""
    grouped = [group for group in constraints.groups if group]
    if grouped:
        yield f"groups that share a format: {len(set(grouped)):,}, with {len(grouped):,} of {len(constraints.groups):,} layers"
    yield text_table([_row(each, problem.table.formats) for each in made], COLUMNS)
