"""What binds an allocation: protected layers, floors, and groups of layers that share a format.

A rule is `PATTERN=FORMAT`; of the rules for protection, or for floors, the last one that matches a layer holds. Protection goes
before floors. `category:PATTERN` is matched with the table's column `category` instead of the layers' names.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitplan.core.errors import Problem, UserError, nearest
from bitplan.models.layer_patterns import match_layers, nearest_layers
from bitplan.sensitivity.table import SensitivityTable, listed

CATEGORY = "category:"
# Sizes of one format differ by this share at most where they are rounded to whole bytes.
ROUNDING = 1e-9

Mask = NDArray[np.bool_]
Places = NDArray[np.intp]


@dataclass(frozen=True)
class Rule:
    """A pattern and a format; `format` None means the largest that the layer can have. `flag` is where it was given."""

    pattern: str
    format: str | None
    flag: str

    @property
    def where(self) -> str:
        """The rule as it was given."""
        return f"{self.flag} {self.pattern}" + (f"={self.format}" if self.format is not None else "")

    def layers(self, table: SensitivityTable) -> list[int]:
        """Return the places of the layers that match."""
        if self.pattern.startswith(CATEGORY):
            return match_layers(self.pattern.removeprefix(CATEGORY), table.categories)
        return match_layers(self.pattern, table.layers)


def rule_of(text: str, flag: str) -> Rule:
    """Return the rule in `PATTERN=FORMAT` or `PATTERN`."""
    pattern, equals, form = text.rpartition("=")
    return Rule(pattern, form, flag) if equals else Rule(text, None, flag)


@dataclass(frozen=True, eq=False)
class Constraints:
    """The groups of the layers, (L,) with "" for a layer alone, and the rules in the order in which they were given."""

    groups: Sequence[str] = ()
    protect: Sequence[Rule] = ()
    floor: Sequence[Rule] = ()


# -- rules that fit no table -----------------------------------------------------------------------------------------


def _rule_problems(table: SensitivityTable, rules: Iterable[Rule], needs_format: bool) -> Iterator[Problem]:
    for rule in rules:
        if not rule.layers(table):
            if rule.pattern.startswith(CATEGORY):
                known = sorted(set(filter(None, table.categories)))
                hint = f"Its categories are: {', '.join(known)}" if known else "The table has no column category"
                yield Problem(rule.where, "matches no category of the table", hint)
            else:
                yield Problem(rule.where, "matches no layer", nearest_layers(rule.pattern, table.layers))
        if rule.format is None and needs_format:
            yield Problem(rule.where, "names no format", f"Give PATTERN=FORMAT, with one of {', '.join(table.formats)}")
        elif rule.format is not None and rule.format not in table.named:
            hint = nearest(rule.format, table.formats) or f"Its formats are: {', '.join(table.formats)}"
            yield Problem(rule.where, f"the table has no format {rule.format!r}", hint)


def _last_rule(table: SensitivityTable, rules: Sequence[Rule]) -> Places:
    """Return the number of the last rule that matches each layer, (L,); -1 where none does."""
    last = np.full(len(table.layers), -1)
    for number, rule in enumerate(rules):
        last[rule.layers(table)] = number
    return last


# -- groups ----------------------------------------------------------------------------------------------------------


def units_of(layers: Sequence[str], groups: Sequence[str]) -> Places:
    """Return the unit of each layer, (L,): layers of a group are one, every other layer is one; in the layers' order."""
    if not groups:
        return np.arange(len(layers))
    seen: dict[tuple[str, str], int] = {}
    keys = ((group, "") if group else ("", layer) for layer, group in zip(layers, groups, strict=True))
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.intp)


def in_units(mask: Mask, unit: Places) -> Mask:
    """Return which formats all layers of each unit may have, (U, K), of what each layer may have (L, K)."""
    shared = np.ones((unit.max() + 1, mask.shape[1]), dtype=bool)
    np.logical_and.at(shared, unit, mask)
    return shared


def sums_in_units(values: NDArray[np.float64], unit: Places) -> NDArray[np.float64]:
    """Return the sums of values (L, K) over the layers of each unit, (U, K)."""
    if len(values) == unit.max() + 1:
        return values
    sums = np.zeros((unit.max() + 1, values.shape[1]))
    np.add.at(sums, unit, values)
    return sums


def _unit_name(table: SensitivityTable, unit: Places, number: int) -> str:
    members = [table.layers[place] for place in np.flatnonzero(unit == number)]
    return f"{'group of ' if len(members) > 1 else 'layer '}{listed(members)}"


# -- masks -----------------------------------------------------------------------------------------------------------


def _largest(allowed: Mask, table: SensitivityTable, unit: Places) -> Mask:
    """Return for each layer the largest of the formats that its unit can have, among equals the least damaging; (L, K)."""
    can = in_units(allowed, unit)
    size, kld = sums_in_units(table.size, unit), sums_in_units(table.kld, unit)
    largest = np.where(can, size, -1.0).max(axis=1, keepdims=True)
    best = np.where(can & (size == largest), kld, np.inf).argmin(axis=1)
    return np.eye(allowed.shape[1], dtype=bool)[best][unit]


def _protected(mask: Mask, table: SensitivityTable, unit: Places, rules: Sequence[Rule]) -> tuple[Mask, list[Problem]]:
    """Return the mask with the formats of protected layers alone, and the layers that cannot have theirs."""
    last, problems = _last_rule(table, rules), []
    fixed, largest = mask.copy(), _largest(mask, table, unit)
    for number, rule in enumerate(rules):
        held = last == number
        if rule.format is None:
            fixed[held] = largest[held]
            continue
        wanted = mask & table.answers(rule.format)
        if (lacking := np.flatnonzero(held & ~wanted.any(axis=1))).size:
            names = listed([table.layers[place] for place in lacking])
            what = f"{names} or others of the group have no row for {rule.format}"
            can = ", ".join(name for name, yes in zip(table.formats, mask[lacking].all(axis=0), strict=True) if yes)
            hint = f"Protect with a format that the table has for {'them' if lacking.size > 1 else 'it'}: {can}"
            problems.append(Problem(rule.where, what, hint))
        fixed[held] = wanted[held]
    return fixed, problems


def _above(table: SensitivityTable, form: str) -> Mask:
    """Return which formats take no fewer bytes than `form`, (L, K); where a layer lacks it, than its bits in other layers."""
    rows = table.answers(form)
    has, size = rows.any(axis=1), np.where(rows, table.size, 0.0).sum(axis=1)
    bytes_per_weight = size[has].sum() / table.params[has].sum()
    least = np.where(has, size, bytes_per_weight * table.params)
    return table.size >= least[:, None] * (1 - ROUNDING)


def _raised(mask: Mask, table: SensitivityTable, constraints: Constraints) -> Mask:
    """Return the mask without the formats below the floors of layers that are not protected."""
    last = np.where(_last_rule(table, constraints.protect) < 0, _last_rule(table, constraints.floor), -1)
    raised = mask.copy()
    for number, rule in enumerate(constraints.floor):
        held = last == number
        raised[held] &= _above(table, rule.format)[held]
    return raised


def _stuck(table: SensitivityTable, unit: Places, can: Mask, what: str, hint: str) -> list[Problem]:
    numbers = np.flatnonzero(~can.any(axis=1))
    if not numbers.size:
        return []
    more = f" (and {numbers.size - 1:,} more)" if numbers.size > 1 else ""
    return [Problem(_unit_name(table, unit, int(numbers[0])) + more, what, hint)]


def allowed_formats(table: SensitivityTable, constraints: Constraints) -> tuple[Places, Mask]:
    """Return the unit of each layer, (L,), and which formats each unit may have, (U, K).

    Raises `UserError` with every rule that matches no layer or names an unknown format; with protected layers that cannot
    have their format; and with layers and groups for which no format is left.
    """
    refuse = [
        *_rule_problems(table, constraints.protect, False),
        *_rule_problems(table, constraints.floor, True),
    ]
    unit = units_of(table.layers, constraints.groups)
    can = in_units(table.has, unit)
    refuse += _stuck(table, unit, can, "have no format in common", "Add rows to the table, or take the group apart")
    if refuse:
        raise UserError(refuse)
    mask, refuse = _protected(can[unit], table, unit, constraints.protect)
    can = in_units(_raised(mask, table, constraints), unit)
    refuse += (
        [] if refuse else _stuck(table, unit, can, "no format is left", "Lower its floor, or change its protection")
    )
    if refuse:
        raise UserError(refuse)
    return unit, can
