"""Studies: one plan with some of its settings varied; each cell is a plan of its own, with results that are kept and shared."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from bitplan.core.section import Name, Section
from bitplan.search.registry import AnyPlan

Values = list[Any] | dict[Name, Any]


@dataclass(frozen=True)
class Cell:
    """A plan of a study: its name `study.labels`, what was varied by label, and the plan."""

    name: str
    labels: Mapping[str, str]
    plan: AnyPlan


def _label(value: Any) -> str:
    """Return a value as a part of a name: 2.5, quantile, 2-4-8."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "-".join(map(_label, value)) if isinstance(value, list) else str(value)


def _labelled(values: Values) -> dict[str, Any]:
    return values if isinstance(values, dict) else {_label(value): value for value in values}


class StudySettings(Section):
    """A plan, and which of its settings are varied: all combinations, and single cells besides."""

    plan: dict[str, Any] = Field(description="the plan that is varied, as under plans")
    vary: dict[str, Values] = Field(
        {}, description="setting: list of values, or mapping of labels to values; all combinations are made"
    )
    also: dict[Name, dict[str, Any]] = Field(
        {}, description="single cells besides, by name: the settings in which each differs from the plan"
    )
    x: str | None = Field(
        None,
        description="what the figure has along: a varied setting (the first by name when absent), or avg_bits_layers",
    )

    def cells(self, name: str) -> tuple[Cell, ...]:
        """Return the cells of the study. Raises ValueError naming the cell whose settings make no plan."""
        keys = sorted(self.vary)  # the order in which they are written decides no name
        tables = [_labelled(self.vary[key]) for key in keys]
        made = []
        for labels in product(*tables) if keys else ():
            changed = {key: table[label] for key, table, label in zip(keys, tables, labels, strict=True)}
            made.append((".".join((name, "-".join(labels))), dict(zip(keys, labels, strict=True)), changed))
        for label, changed in self.also.items():
            made.append((f"{name}.{label}", {"also": label}, changed))
        return tuple(Cell(called, told, self._plan(called, changed)) for called, told, changed in made)

    def _plan(self, cell: str, changed: Mapping[str, Any]) -> AnyPlan:
        try:
            TypeAdapter(Name).validate_python(cell)
            return TypeAdapter(AnyPlan).validate_python({**self.plan, **changed})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"][1:]))
            raise ValueError(f"cell {cell}: {where + ': ' if where else ''}{first['msg']}") from None

    @model_validator(mode="after")
    def _has_cells_that_are_plans(self) -> "StudySettings":
        cells = self.cells("study")
        if not cells:
            raise ValueError("has no cell: give vary or also")
        if len({cell.name for cell in cells}) < len(cells):
            raise ValueError("gives two cells the same name: use labels, as vary: {weights: {first: {...}}}")
        along = {*self.vary, "avg_bits_layers", None}
        if self.x not in along:
            raise ValueError(f"x: {self.x} is not varied")
        return self
