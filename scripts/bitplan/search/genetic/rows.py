"""The figures of a sensitivity table that the genetic search looks at, by layer and candidate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitplan.core.errors import nearest, user_error
from bitplan.core.files import read_table
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.pairs import Pair, parse_pair
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.plans.smoothing import Smoothing, read_smoothing, smoothing_path
from bitplan.sensitivity.table import figure_of

GROUP_SIZE = 128
MADE_AGAIN = "Make it again with scripts/sensitivity.py"


@dataclass(frozen=True)
class Sensitivity:
    """The rows of a sensitivity table by layer and (weight format, activation format), in the table's order.

    Formats with a group of their own have it in their name too, as int4_g64.
    """

    rows: Mapping[str, Mapping[tuple[str, str], Mapping[str, Any]]]
    source: str

    def _row(self, layer: str, choice: tuple[str, str]) -> Mapping[str, Any]:
        row = self.rows.get(layer, {}).get(choice)
        if row is None:
            close = "" if layer in self.rows else nearest(layer, self.rows)
            raise user_error(self.source, f"has no row for {layer} in {' with '.join(choice)}", close or MADE_AGAIN)
        return row

    def _row_of(self, layer: str, made: LayerPlan) -> Mapping[str, Any]:
        exact = row_key(Pair(made.wq, made.aq, made.group_size).name)
        return self.rows[layer].get(exact) or self._row(layer, (made.wq, made.aq))

    def value(self, layer: str, choice: tuple[str, str], column: str) -> float:
        """Return a figure; 0 for an empty one of an expert that no token reached, as the row's `tokens` says.

        Raises `UserError` when the table has no such row or number.
        """
        row = self._row(layer, choice)
        told = row.get(column)
        made = figure_of(told, row.get("tokens"))
        if not (math.isfinite(made) and made >= 0):
            empty = told in (None, "")
            what = f"{column} is empty" if empty else f"{column} {told!r} is no number of 0 or more"
            hint = (
                f"{MADE_AGAIN}: of layers that no token reached, 0 in its column tokens says so"
                if empty
                else MADE_AGAIN
            )
            raise user_error(f"{self.source}: {layer}", f"{what} in {' with '.join(choice)}", hint)
        return made

    def size(self, layer: str, choice: tuple[str, str]) -> float:
        """Return a layer's stored bits. Raises `UserError` when the table has none."""
        told = self._row(layer, choice).get("bytes")
        made = 0.0 if told in (None, "") else 8 * self.value(layer, choice, "bytes")
        if made == 0:
            raise user_error(f"{self.source}: {layer}", f"has no bytes in {' with '.join(choice)}", MADE_AGAIN)
        return made

    def group_size(self, layer: str, choice: tuple[str, str]) -> int:
        """Return the weights per group that a row was measured with; 128 where the table does not say."""
        told = self._row(layer, choice).get("group_size") or GROUP_SIZE
        if not str(told).isdecimal() or int(told) < 1:
            raise user_error(f"{self.source}: {layer}", f"group_size {told!r} is no group", MADE_AGAIN)
        return int(told)

    def check_unsmoothed(self, choices: Sequence[tuple[str, str]]) -> None:
        """Raise `UserError` where one of some choices was measured on smoothed inputs: a plan that chooses by layer has no factors."""
        for layer, rows in self.rows.items():
            for choice in choices:
                if choice[1] != UNQUANTIZED and rows.get(choice, {}).get("smoothed"):
                    hint = "Make the table with --no-smoothing (sensitivity.smooth_alpha: [])"
                    raise user_error(
                        f"{self.source}: {layer}", f"{'/'.join(choice)} was measured on smoothed inputs", hint
                    )

    def sources(self, plan: Plan, info: ModelInfo) -> dict[str, int]:
        """Return how many of a plan's candidates have their KL from where: measured, priced, fitted ..."""
        chosen = ((layer.name, plan.of(layer.name)) for layer in info.quantizable)
        told = [str(self._row_of(name, made).get("kld_from") or "") for name, made in chosen]
        return {source: told.count(source) for source in sorted(set(told))}

    def check(self, column: str) -> None:
        """Raise `UserError` for a column without a single figure: a search would take every choice for equally good."""
        if all(row.get(column) in (None, "") for choices in self.rows.values() for row in choices.values()):
            raise user_error(f"{self.source}: {column}", "has no figures", "Choose another --metric")


def read_sensitivity(path: Path) -> Sensitivity:
    """Return a sensitivity table. Raises `UserError` when it lacks a column."""
    return sensitivity_of(read_table(path, ("layer", "format", "inputs", "bytes", "mse")), str(path))


def check_sources(table: Path | None, measured_with: Mapping[str, object]) -> None:
    """Raise `UserError` for flags that say how a table is measured beside one that has been measured."""
    given = [flag for flag, value in measured_with.items() if value is not None]
    if table is not None and given:
        raise user_error(
            given[0], "says how the table is measured, and --sensitivity gives one", "Leave out one of them"
        )


def smoothing_of(table: Sensitivity, path: Path) -> Smoothing | None:
    """Return the factors beside a table, None where nothing in it was smoothed. Raises `UserError` for those of another table."""
    named = {row.get("smoothed") or "" for rows in table.rows.values() for row in rows.values()} - {""}
    if not named:
        return None
    smoothing = read_smoothing(smoothing_path(path))
    if named != {smoothing.short_digest}:
        raise user_error(
            smoothing_path(path), "belongs to another table", "Make both again with scripts/sensitivity.py"
        )
    return smoothing


def sensitivity_of(rows: Sequence[Mapping[str, Any]], source: str = "sensitivity") -> Sensitivity:
    """Return the rows of a table by layer and formats; figures that are NaN count as empty, as they are in a file.

    Raises `UserError` for a row that is there twice.
    """
    found: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for row in rows:
        held = {key: None if value != value else value for key, value in row.items()}
        group, inputs = held.get("group_size"), row["inputs"] or UNQUANTIZED
        of_layer = found.setdefault(row["layer"], {})
        choice = (Pair(row["format"], group_size=group or None).name, inputs)
        if choice in of_layer:
            what = f"has two rows for {row['layer']} in {' with '.join(choice)}"
            raise user_error(source, what, "Give one row for each layer and format")
        of_layer[choice] = held
    return Sensitivity({layer: _also_without_group(of_layer) for layer, of_layer in found.items()}, source)


def _also_without_group(rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return a layer's rows also by the format without its group: the first one, where it was measured in several."""
    plain = {(row["format"], inputs): row for (_, inputs), row in reversed(rows.items())}
    return {**rows, **{key: row for key, row in plain.items() if key not in rows}}


def row_key(name: str) -> tuple[str, str]:
    """Return the key in a layer's rows of a palette's candidate, as ("int4_g64", "int8_token") of int4_g64/int8_token."""
    made = parse_pair(name)
    return Pair(made.wq, group_size=made.group_size).name, made.aq
