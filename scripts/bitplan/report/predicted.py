"""Plans that no step made, as the sensitivity table predicts them: the best at many sizes, and one format for all layers.

The KL of such a plan is the sum of its layers' KL in the table: weights as the table quantized them, without a runtime's rounding of
activations. Its size counts parameters outside the table at 16 bits.
"""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitplan.models.layers import ModelInfo
from bitplan.report.front import Axes
from bitplan.report.tables import Row
from bitplan.search.allocation.constraints import Constraints
from bitplan.search.allocation.problem import BYTES, AllocationProblem, Target, allocate, allocation_problem, reach
from bitplan.search.optimal.candidates import chosen_table, sharing
from bitplan.sensitivity.table import SensitivityTable, read_sensitivity_table

TARGETS = 40
REST_BITS = 16  # of parameters that the table does not have


@dataclass(frozen=True)
class PredictedPlan:
    """A plan as the table has it: average bits over all parameters, KL in nats per token, and the place of each layer's format."""

    name: str
    bits: float
    kl: float
    choice: tuple[int, ...]


@dataclass(frozen=True)
class Prediction:
    """The table of a palette; the best plans by rising size, and one plan of one format for each format of the palette."""

    table: SensitivityTable
    palette: tuple[str, ...]
    front: tuple[PredictedPlan, ...]
    uniform: tuple[PredictedPlan, ...]

    def formats(self, plan: PredictedPlan) -> str:
        """Return how many layers of a plan have which format, e.g. "q4_k x 20, q6_k x 8"; fewest bits first."""
        counts = Counter(plan.choice)
        return ", ".join(f"{self.table.formats[place]} x {counts[place]}" for place in sorted(counts))


def read_prediction(path: Path, palette: Sequence[str], info: ModelInfo) -> Prediction:
    """Return what the table in a file predicts for a palette. Raises `UserError` where it lacks a format or a layer."""
    return prediction(chosen_table(read_sensitivity_table(path, palette), palette, info, path), palette, info)


def prediction(table: SensitivityTable, palette: Sequence[str], info: ModelInfo, targets: int = TARGETS) -> Prediction:
    """Return what a table of a palette's candidates predicts for sizes from the least to the largest."""
    problem = allocation_problem(table, Constraints(sharing(palette, info, table.layers)))
    return Prediction(
        table, tuple(palette), tuple(_front(problem, info, targets)), tuple(_uniform(table, palette, info))
    )


def _bits(size: float, table: SensitivityTable, info: ModelInfo) -> float:
    """Return average bits over all parameters where the table's layers take `size` bytes."""
    rest = info.parameters - float(table.params.sum())
    return (8 * size + REST_BITS * rest) / info.parameters


def _plan(name: str, choice: NDArray[np.intp], table: SensitivityTable, info: ModelInfo) -> PredictedPlan:
    rows = np.arange(len(choice))
    size, kl = (float(values[rows, choice].sum()) for values in (table.size, table.kld))
    return PredictedPlan(name, _bits(size, table, info), kl, tuple(choice.tolist()))


def _front(problem: AllocationProblem, info: ModelInfo, targets: int) -> Iterator[PredictedPlan]:
    """Yield the exact solutions for sizes at equal ratios from the least to the largest, each plan once."""
    table, (low, high) = problem.table, reach(problem)[BYTES]
    place = {form: i for i, form in enumerate(table.formats)}
    known = set()
    for made in allocate(problem, [Target(BYTES, limit) for limit in np.geomspace(low, high, targets).tolist()]):
        choice = np.array([place[made.plan[layer]] for layer in table.layers], dtype=np.intp)
        if (key := tuple(choice.tolist())) not in known:
            known.add(key)
            yield _plan("predicted", choice, table, info)


def _uniform(table: SensitivityTable, palette: Sequence[str], info: ModelInfo) -> Iterator[PredictedPlan]:
    """Yield the plans of one format each; formats that come to the same plan, as all layers have another for them, yield one."""
    formats: dict[tuple[int, ...], list[str]] = {}
    for form in (each for each in palette if table.answers(each).any()):
        formats.setdefault(tuple(_of_one_format(table, form).tolist()), []).append(form)
    for choice, meant in formats.items():
        yield _plan(_name(table, choice, meant), np.array(choice, dtype=np.intp), table, info)


def _of_one_format(table: SensitivityTable, form: str) -> NDArray[np.intp]:
    """Return the choice of one format; a layer without it, such as an embedding, has the nearest in size of those it has."""
    own = table.answers(form)
    has = own.any(axis=1)
    bytes_per_weight = table.size[own].sum() / table.params[has].sum()
    distance = np.where(table.has, np.abs(table.size - bytes_per_weight * table.params[:, None]), np.inf)
    return np.where(has, own.argmax(axis=1), distance.argmin(axis=1))


def _name(table: SensitivityTable, choice: Sequence[int], meant: Sequence[str]) -> str:
    """Return the name of a plan of one format: the one that most weights really have, and those that it stands for where they do not
    fit the layers' rows, as in "all q5_0 (for q4_k)"."""
    weights: Counter[str] = Counter()
    for place, count in zip(choice, table.params.tolist(), strict=True):
        weights[table.formats[place]] += int(count)
    real = max(weights, key=lambda form: (weights[form], form in meant))
    others = ", ".join(form for form in meant if form != real)
    share = "all" if len(weights) == 1 else "mostly"
    return f"{share} {real} (for {others})" if others else f"{share} {real}"


def file_overhead(rows: Sequence[Row], axes: Axes) -> float:
    """Return how many bits per parameter a size on the axis is above a plan's average bits: the median over the optimal plans."""
    known = [row[axes.size] - row["avg_bits"] for row in rows if row["method"] == "optimal" and axes.has(row)]
    return statistics.median(known) if known else 0.0


def measured_over_predicted(rows: Sequence[Row], axes: Axes) -> str:
    """Return a sentence on how the measured KL of the optimal plans compares with what the table predicted; "" without any."""
    ratios = [row[axes.kl] / row["kl_predicted"] for row in rows if axes.has(row) and row.get("kl_predicted")]
    if not ratios:
        return ""
    low, high = (f"{end:.2f}" for end in (min(ratios), max(ratios)))
    times = low if low == high else f"{low} to {high}"
    return f"The plans that were made from this table have {times} times the KL that it predicted for them."
