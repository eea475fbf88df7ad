"""The optimal allocation: the plan of least damage under a size, or of least size under a damage, from a sensitivity table.

    minimize sum_l kld[l, f_l]    subject to  sum_l bytes[l, f_l] <= B          (targets of average bits, and of bytes)
    minimize sum_l bytes[l, f_l]  subject to  sum_l kld[l, f_l]   <= D          (targets of damage)

over one format f_l for each layer, the same within a group. Both are the multiple-choice knapsack problem (`exact.py`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context

import numpy as np

from bitplan.core.errors import Problem, UserError
from bitplan.search.allocation.constraints import Constraints, Places, allowed_formats, sums_in_units
from bitplan.search.knapsack.choices import ROUNDING, Choices, limit_of, reachable
from bitplan.search.knapsack.exact import Solution, optimal
from bitplan.sensitivity.table import SensitivityTable

AVG_BITS, BYTES, KLD = "avg_bits_layers", "bytes", "max_kld"


@dataclass(frozen=True)
class Target:
    """A limit: on average bits over the layers of the table, on their bytes, or on the sum of their damages in nats."""

    kind: str
    limit: float

    @property
    def minimized(self) -> str:
        """What the plan has least of under this limit: "kld" or "bytes"."""
        return "bytes" if self.kind == KLD else "kld"


@dataclass(frozen=True, eq=False)
class AllocationProblem:
    """A table, the unit of each layer (L,), and the damage (inf: not allowed) and bytes of each unit and format, (U, K)."""

    table: SensitivityTable
    unit: Places
    choices: Choices

    @property
    def params(self) -> float:
        """Number of weights of all layers."""
        return float(self.table.params.sum())


@dataclass(frozen=True, eq=False)
class Allocation:
    """A plan, its sum of damages in nats, its bytes, and a bound below which no plan under the target can be.

    `lower_bound` is in the unit of `target.minimized`, as is the relative `gap` of the plan to it; `exact`: the bound is the
    plan's own figure.
    """

    target: Target
    plan: Mapping[str, str]
    kld: float
    bytes: int
    avg_bits_layers: float
    lower_bound: float
    gap: float
    exact: bool

    @property
    def counts(self) -> dict[str, int]:
        """How many layers have each format."""
        formats = list(self.plan.values())
        return {form: formats.count(form) for form in dict.fromkeys(formats)}


def allocation_problem(table: SensitivityTable, constraints: Constraints | None = None) -> AllocationProblem:
    """Return the problem of a table under constraints. Raises `UserError` where they leave a layer without a format."""
    unit, can = allowed_formats(table, constraints or Constraints())
    damage = np.where(can, sums_in_units(table.kld, unit), np.inf)
    size = np.where(can, sums_in_units(table.size, unit), 0.0)
    first = np.unique(unit, return_index=True)[1]
    return AllocationProblem(table, unit, Choices([table.layers[i] for i in first], table.formats, damage, size))


def _exchanged(choices: Choices) -> Choices:
    """Return the choices with damage for size and size for damage."""
    size = np.where(choices.allowed, choices.damage, 0.0)
    return Choices(choices.layers, choices.options, np.where(choices.allowed, choices.size, np.inf), size)


# -- what can be reached ---------------------------------------------------------------------------------------------


def reach(problem: AllocationProblem) -> dict[str, tuple[float, float]]:
    """Return the least and the largest average bits, bytes and sum of damages that any plan has, by kind of target."""
    low, high = reachable(problem.choices)
    per_weight = 8 / problem.params
    return {
        AVG_BITS: (low * per_weight, high * per_weight),
        BYTES: (low, high),
        KLD: reachable(_exchanged(problem.choices)),
    }


def _rounded_up(held: float) -> str:
    """Return a figure with 6 digits: a limit below what is reached would be refused again."""
    up = Context(prec=6, rounding=ROUND_CEILING).create_decimal(held * (1 - ROUNDING / 2))
    return f"{float(up):.10g}"


FLAGS: Mapping[str, str] = {AVG_BITS: "--target-avg-bits", BYTES: "--target-bytes", KLD: "--max-kld"}


def _target_problems(problem: AllocationProblem, targets: Sequence[Target]) -> Iterator[Problem]:
    """Yield the targets that no plan meets, with the range that plans reach."""
    reached = reach(problem)
    for target in targets:
        low, high = reached[target.kind]
        if not limit_of(target.limit) >= low:
            ends = (f"{math.ceil(end)}" if target.kind == BYTES else _rounded_up(end) for end in (low, high))
            hint = f"The table allows {' to '.join(ends)}: choose a target in this range or relax the constraints"
            yield Problem(
                "SEARCH-TARGET-OUT-OF-REACH",
                f"{FLAGS[target.kind]} {target.limit:.10g}",
                "no plan meets this target",
                hint,
            )


# -- solving ---------------------------------------------------------------------------------------------------------


def _allocation(problem: AllocationProblem, target: Target, choice: Places, bound: Solution) -> Allocation:
    table, rows = problem.table, np.arange(len(problem.table.layers))
    chosen = choice[problem.unit]
    kld, size = float(table.kld[rows, chosen].sum()), float(table.size[rows, chosen].sum())
    plan = {layer: table.formats[place] for layer, place in zip(table.layers, chosen.tolist(), strict=True)}
    bits, least = 8 * size / problem.params, size if target.minimized == "bytes" else kld
    # Sums in another order differ in their last digits.
    lower = least if bound.exact else min(bound.lower_bound, least)
    return Allocation(target, plan, kld, round(size), bits, lower, bound.gap, bound.exact)


def _least_damage(problem: AllocationProblem, target: Target) -> Allocation:
    budget = target.limit * problem.params / 8 if target.kind == AVG_BITS else target.limit
    found = optimal(problem.choices, budget)
    return _allocation(problem, target, found.choice, found)


def _least_size(problem: AllocationProblem, target: Target) -> Allocation:
    """Return the smallest plan under a damage, and of those of its size one with less damage, if any is found."""
    found = optimal(_exchanged(problem.choices), target.limit)
    same_size = optimal(problem.choices, found.damage)
    better = same_size.damage <= found.size and same_size.size <= found.damage
    return _allocation(problem, target, (same_size if better else found).choice, found)


def allocate(problem: AllocationProblem, targets: Sequence[Target]) -> list[Allocation]:
    """Return the best plan for each target. Raises `UserError` with every target that no plan meets."""
    if wrong := tuple(_target_problems(problem, targets)):
        raise UserError(wrong)
    solve = {"kld": _least_damage, "bytes": _least_size}
    return [solve[target.minimized](problem, target) for target in targets]
