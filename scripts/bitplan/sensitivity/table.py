"""A sensitivity table from anywhere: what each format of each layer takes and costs, as arrays, checked when it is read.

The table is CSV or TSV with the columns `layer, params, format, bytes, kld`, others besides. Layers and formats may have any names.
A figure that is not there is an error, with one exception: where the column `tokens` is 0, no token reached the layer (an expert that
was never chosen), and an empty figure is 0. Every reader of such tables takes its figures from `figure_of`.
"""

import csv
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bitplan.core.errors import Problem, UserError, user_error
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.pairs import Pair

if TYPE_CHECKING:
    from bitplan.models.layers import ModelInfo

log = logging.getLogger(__name__)
REQUIRED = ("layer", "params", "format", "bytes", "kld")
DELIMITERS = "\t;,"
# What `inputs` holds in rows of formats for weights alone.
WEIGHTS_ALONE = ("", UNQUANTIZED)
SHOWN = 3

Table = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SensitivityTable:
    """For L layers and K formats: `params` (L,), `size` in bytes and `kld` in nats (L, K), categories (L,), "" where unknown.

    A format that a layer has no row for has the size 0 and the damage inf. `asked` {(layer, format): names} says which other formats a
    row stands for, where the layer's rows do not fit these. `sources` (L, K) says where each damage comes from (measured, priced,
    fitted ...), where the table says so.
    """

    layers: tuple[str, ...]
    formats: tuple[str, ...]
    params: Table
    size: Table
    kld: Table
    categories: tuple[str, ...]
    asked: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    sources: NDArray[np.str_] | None = None

    def counts_by_source(self, plan: Mapping[str, str]) -> dict[str, int]:
        """Return how many candidates of a plan {layer: format} have their damage from where; nothing where the table does not say."""
        if self.sources is None:
            return {}
        rows, columns = ({name: i for i, name in enumerate(names)} for names in (self.layers, self.formats))
        found = [str(self.sources[rows[layer], columns[form]]) for layer, form in plan.items() if layer in rows]
        return {source: found.count(source) for source in sorted(set(found))}

    def limited(self, may: NDArray[np.bool_], first: Sequence[str]) -> "SensitivityTable":
        """Return the table of the rows for which `may` (L, K) is true, the formats that still have any in the order of `first`."""
        kld = np.where(may, self.kld, np.inf)
        ordered = dict.fromkeys((*first, *self.formats))
        used = [
            form for form in ordered if form in self.formats and np.isfinite(kld[:, self.formats.index(form)]).any()
        ]
        places = [self.formats.index(form) for form in used]
        sources = None if self.sources is None else self.sources[:, places]
        return replace(self, formats=tuple(used), size=self.size[:, places], kld=kld[:, places], sources=sources)

    @property
    def has(self) -> NDArray[np.bool_]:
        """Which formats each layer has a row for, (L, K)."""
        return np.isfinite(self.kld)

    @property
    def named(self) -> tuple[str, ...]:
        """Every format that a layer may be asked to have: those of the rows, and those that rows stand for."""
        return tuple(dict.fromkeys((*self.formats, *(name for names in self.asked.values() for name in names))))

    def answers(self, form: str) -> NDArray[np.bool_]:
        """Return which row of each layer is that of a format, (L, K): its own, else the one that stands for it."""
        own = np.array([name == form for name in self.formats]) & self.has
        places = {name: place for place, name in enumerate(self.formats)}
        rows = {name: row for row, name in enumerate(self.layers)}
        for (layer, used), names in self.asked.items():
            if form in names and used in places and not own[rows[layer]].any():
                own[rows[layer], places[used]] = self.has[rows[layer], places[used]]
        return own


@dataclass(frozen=True)
class _Rows:
    """The columns of a file as text, and the line of each row."""

    path: Path
    lines: list[int]
    columns: dict[str, list[str]]

    def kept(self, keep: Sequence[bool]) -> "_Rows":
        """Return the rows for which `keep` is true."""
        columns = {
            name: [cell for cell, yes in zip(cells, keep, strict=True) if yes] for name, cells in self.columns.items()
        }
        return _Rows(self.path, [line for line, yes in zip(self.lines, keep, strict=True) if yes], columns)

    def where(self, wrong: Iterable[int]) -> str:
        """Return the file and the first lines of some rows."""
        rows = list(wrong)
        lines = ", ".join(str(self.lines[row]) for row in rows[:SHOWN])
        more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
        return f"{self.path}, line{'s' * (len(rows) > 1)} {lines}{more}"


def figure_of(cell: object, tokens: object = None) -> float:
    """Return a figure from its cell: NaN for what is empty or no number; 0 for an empty one of a layer that no token reached.

    `tokens` is the row's cell of that name, None where the table has no such column. A cell is text, a number or None.
    """
    if cell is None or cell == "" or cell != cell:
        return 0.0 if _number(tokens) == 0 else math.nan
    return _number(cell)


def check_known(layers: Iterable[str], info: "ModelInfo", source: object) -> None:
    """Raise `UserError` for a table with rows of layers that the model does not have: its sizes would count too."""
    foreign = sorted(set(layers) - {layer.name for layer in info.layers})
    if foreign:
        what = f"has rows for {listed(foreign)}, which the model does not have"
        raise user_error(
            "SENSITIVITY-FOREIGN-ROWS",
            source,
            what,
            "Measure this model with scripts/sensitivity.py or remove the rows",
        )


def tell_unreached(layers: Iterable[str]) -> None:
    """Log how many layers no token reached, if any: what their formats do was not seen."""
    names = sorted(set(layers))
    if names:
        log.warning(
            "no token reached %d layers (%s): their formats count as harmless; use more calibration text",
            len(names),
            listed(names),
        )


def listed(names: Sequence[str], shown: int = SHOWN) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


# -- reading ---------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> _Rows:
    """Return the rows of a file, in which the header says what parts the cells. Raises `UserError`."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            first = handle.readline()
            handle.seek(0)
            reader = csv.reader(handle, delimiter=next((mark for mark in DELIMITERS if mark in first), ","))
            header = [name.strip() for name in next(reader, [])]
            cells, lines = [], []
            for row in reader:
                if row:
                    cells.append(row)
                    lines.append(reader.line_num)
    except OSError as error:
        raise user_error(
            "FILE-UNREADABLE", path, f"cannot be read: {error.strerror}", "Give a table as CSV or TSV"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise user_error(
            "TABLE-NOT-TABLE", path, f"is not a CSV or TSV table: {error}", "Give a table as CSV or TSV"
        ) from None
    _check_header(path, header)
    made = _Rows(path, lines, {})
    short = [row for row, held in enumerate(cells) if len(held) != len(header)]
    if short:
        what = f"the number of cells differs from the header's {len(header)}"
        raise user_error("TABLE-NOT-TABLE", made.where(short), what, "Write one cell per column")
    made.columns.update({name: [row[place] for row in cells] for place, name in enumerate(header)})
    return made


def _check_header(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        hint = f"Its columns are: {', '.join(header)[:200] or 'none'}. It needs {', '.join(REQUIRED)}"
        raise user_error("TABLE-NO-COLUMN", path, f"has no column {', '.join(missing)}", hint)


def _numbers(texts: Sequence[str]) -> Table:
    """Return the numbers of a column, NaN for what is none."""
    try:
        return np.array(texts, dtype=np.str_).astype(np.float64)
    except ValueError:
        return np.array([_number(text) for text in texts])


def _number(cell: object) -> float:
    """Return the number in a cell, NaN for what is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def _klds(rows: _Rows) -> Table:
    """Return the column `kld`, 0 where it is empty and no token reached the layer."""
    tokens = rows.columns.get("tokens")
    klds = _numbers(rows.columns["kld"])
    if tokens is None:
        return klds
    tell_unreached(layer for layer, held in zip(rows.columns["layer"], tokens, strict=True) if _number(held) == 0)
    missing = np.flatnonzero(np.isnan(klds))
    klds[missing] = [figure_of(rows.columns["kld"][row], tokens[row]) for row in missing]
    return klds


# -- checking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Figures:
    """The columns as numbers, and for each row the numbers of its layer and format."""

    params: Table
    bytes: Table
    kld: Table
    layer: NDArray[np.intp]
    format: NDArray[np.intp]


# What each column of figures has to hold, and the way out.
EXPECTED: tuple[tuple[str, Callable[[Table], NDArray[np.bool_]], str, str], ...] = (
    ("params", lambda held: held > 0, "not a number above 0", "Give the number of weights of the layer"),
    ("bytes", lambda held: held >= 0, "not a number of 0 or more", "Give the size of the layer in this format"),
    (
        "kld",
        lambda held: held >= 0,
        "not a number of 0 or more",
        "Give the damage in nats, or leave out the row: the layer cannot have this format then. Of a layer that no token reached,"
        " 0 in the column tokens says so",
    ),
)


def _cell_problems(rows: _Rows, figures: _Figures) -> Iterable[Problem]:
    for name in ("layer", "format"):
        if empty := [row for row, text in enumerate(rows.columns[name]) if not text]:
            yield Problem(
                "SENSITIVITY-BAD-CELL", rows.where(empty), f"no {name}", "Each row needs a layer and a format"
            )
    for name, fits, what, hint in EXPECTED:
        held = getattr(figures, name)
        if (wrong := np.flatnonzero(~(np.isfinite(held) & fits(held)))).size:
            yield Problem(
                "SENSITIVITY-BAD-CELL", rows.where(wrong), f"{name} is {rows.columns[name][wrong[0]]!r}, {what}", hint
            )


def _row_problems(rows: _Rows, figures: _Figures, layers: Sequence[str], formats: Sequence[str]) -> Iterable[Problem]:
    """Yield rows that are there twice, and layers whose rows disagree on their number of weights."""
    cell = figures.layer * len(formats) + figures.format
    first = np.unique(cell, return_index=True)[1]
    if (again := np.setdiff1d(np.arange(len(cell)), first)).size:
        layer, form = layers[figures.layer[again[0]]], formats[figures.format[again[0]]]
        what = f"{layer} already has a row for {form}"
        yield Problem("SENSITIVITY-ROW-TWICE", rows.where(again), what, "Give one row per layer and format")
    of_layer = figures.params[np.unique(figures.layer, return_index=True)[1]][figures.layer]
    if (other := np.flatnonzero(figures.params != of_layer)).size:
        row = other[0]
        what = f"params of {layers[figures.layer[row]]} is {figures.params[row]:.10g}, {of_layer[row]:.10g} in an earlier row"
        yield Problem("SENSITIVITY-UNEQUAL-ROWS", rows.where(other), what, "Use the same number in all rows of a layer")


def _places(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """Return the different names, each where it comes first, and the place of each one's own among them."""
    places: dict[str, int] = {}
    numbers = np.array([places.setdefault(name, len(places)) for name in names], dtype=np.intp)
    return tuple(places), numbers


def _named(rows: _Rows, palette: Sequence[str]) -> _Rows:
    """Return the rows of formats for weights alone, and those of a palette's candidates (`mxfp4/mxfp8`), under the names of these.

    Raises `UserError` for a candidate of the palette whose inputs were smoothed: a plan that chooses by layer has no factors.
    """
    if "inputs" not in rows.columns:
        return rows
    formats, inputs = rows.columns["format"], rows.columns["inputs"]
    groups = rows.columns.get("group_size", [""] * len(formats))
    asked = rows.columns.get("asked", [""] * len(formats))
    cells = list(zip(inputs, groups, strict=True))
    names = [_name_of(form, *cell) for form, cell in zip(formats, cells, strict=True)]
    also = [[_name_of(form, *cell) for form in told.split()] for told, cell in zip(asked, cells, strict=True)]
    wanted = [not {name, *others}.isdisjoint(palette) for name, others in zip(names, also, strict=True)]
    smoothed = rows.columns.get("smoothed", [""] * len(formats))
    if wrong := [row for row, yes in enumerate(wanted) if yes and inputs[row] not in WEIGHTS_ALONE and smoothed[row]]:
        hint = "Create the table with --no-smoothing (sensitivity.smooth_alpha: [])"
        raise user_error(
            "SENSITIVITY-SMOOTHED", rows.where(wrong), f"{names[wrong[0]]} was measured on smoothed inputs", hint
        )
    # Of a format that a layer has in several groups, each has its own name.
    alone = [
        (layer, form, aq in WEIGHTS_ALONE)
        for layer, form, aq in zip(rows.columns["layer"], formats, inputs, strict=True)
    ]
    several = Counter(cell for cell, yes in zip(alone, wanted, strict=True) if not yes)
    full = [yes or several[cell] > 1 for cell, yes in zip(alone, wanted, strict=True)]
    rows.columns["format"] = [name if yes else form for name, form, yes in zip(names, formats, full, strict=True)]
    rows.columns["asked"] = [
        " ".join(others) if yes else told for others, told, yes in zip(also, asked, wanted, strict=True)
    ]
    return rows.kept([yes or aq in WEIGHTS_ALONE for yes, aq in zip(wanted, inputs, strict=True)])


def _name_of(form: str, inputs: str, group: str) -> str:
    """Return the name in palettes of a row with these cells."""
    return Pair(form, inputs or UNQUANTIZED, int(group) if group.isdecimal() else None).name


def of_palette(table: SensitivityTable, palette: Sequence[str]) -> SensitivityTable:
    """Return the formats of a palette, in its order, and behind them what stands for these in layers whose rows they do not fit.

    Raises `UserError` for a format that the table does not have.
    """
    if absent := [name for name in palette if name not in table.named]:
        raise user_error(
            "SENSITIVITY-NO-FORMAT", f"--palette {absent[0]}", "is not in the table", f"It has {', '.join(table.named)}"
        )
    return table.limited(np.any([table.answers(name) for name in palette], axis=0), palette)


def read_sensitivity_table(path: Path, palette: Sequence[str] = ()) -> SensitivityTable:
    """Return the table in a file, layers and formats in the order in which they come first.

    Rows whose `inputs` is a format are left out, but for those that a palette names (`mxfp4/mxfp8`). Raises `UserError` with all
    kinds of wrong rows at once: figures that are missing, negative or infinite, rows there twice, layers whose rows disagree on `params`.
    """
    rows = _named(_rows(path), palette)
    if not rows.lines:
        raise user_error(
            "SENSITIVITY-NO-WEIGHT-ROWS",
            path,
            "has no rows of formats for weights",
            "Give one row per layer and format",
        )
    layers, layer = _places(rows.columns["layer"])
    formats, form = _places(rows.columns["format"])
    numbers = (_numbers(rows.columns[name]) for name in ("params", "bytes"))
    figures = _Figures(*numbers, _klds(rows), layer, form)
    problems = [*_cell_problems(rows, figures), *_row_problems(rows, figures, layers, formats)]
    if problems:
        raise UserError(problems)
    return _table(rows, figures, layers, formats)


def _table(rows: _Rows, figures: _Figures, layers: tuple[str, ...], formats: tuple[str, ...]) -> SensitivityTable:
    size, kld = np.zeros((len(layers), len(formats))), np.full((len(layers), len(formats)), np.inf)
    size[figures.layer, figures.format] = figures.bytes
    kld[figures.layer, figures.format] = figures.kld
    first = np.unique(figures.layer, return_index=True)[1]
    told = rows.columns.get("category")
    categories = tuple(told[row] for row in first) if told else ("",) * len(layers)
    return SensitivityTable(
        layers, formats, figures.params[first], size, kld, categories, _asked(rows), _sources(rows, figures, kld)
    )


def _asked(rows: _Rows) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the formats that rows stand for beside their own; a table need not have the column."""
    cells = zip(*(rows.columns.get(name, ()) for name in ("layer", "format", "asked")), strict=False)
    found = {(layer, form): tuple(name for name in told.split() if name != form) for layer, form, told in cells}
    return {cell: names for cell, names in found.items() if names}


def _sources(rows: _Rows, figures: _Figures, kld: Table) -> NDArray[np.str_] | None:
    if "kld_from" not in rows.columns:
        return None
    told = np.array(rows.columns["kld_from"], dtype=np.str_)
    sources = np.full(kld.shape, "", dtype=told.dtype)
    sources[figures.layer, figures.format] = told
    return sources
