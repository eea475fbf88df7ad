"""The page's charts as Vega-Lite, made with altair: the front of KL against size, and the formats of a plan's layers."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bitplan.core.colours import GREY
from bitplan.core.files import read_json
from bitplan.core.tables import cell
from bitplan.formats.facts import UNQUANTIZED
from bitplan.models.layers import Layer
from bitplan.report.figure import COLOURS
from bitplan.report.front import Axes, Point, points_of
from bitplan.report.metrics import BY_KEY, SHOWN
from bitplan.report.results import Entry
from bitplan.report.tables import Row

if TYPE_CHECKING:
    import altair

# The marks of the axis of sizes: bits per parameter.
BITS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32)
# A label stands on the right above its point, or in the right half on the left below it, where the line does not cross it.
SIDE, SHIFT, LIFT = (f"datum.at_right ? {right} : {left}" for right, left in (("'right'", "'left'"), (-4, 9), (15, -9)))
INPUT, OUTPUT, ELSEWHERE = "in", "out", "other"


def _value(point: Point, row: Row, axes: Axes, middle: float) -> dict[str, Any]:
    """Return what the chart knows of a point; `text` holds its metrics as the tables show them."""
    text = {metric.key: cell(row.get(metric.key), metric.format) for metric in SHOWN}
    text[axes.kl] += f" ± {row[axes.error]:.1g}" if row.get(axes.error) else ""
    ends = {"low": point.kl - point.error, "high": point.kl + point.error}
    return {**asdict(point), **ends, "text": text, "at_right": point.size > middle}


def front_charts(rows: Sequence[Row], axes: Axes) -> dict[str, dict[str, Any]]:
    """Return {"front": KL against size as a Vega-Lite specification}; nothing where no row has both.

    Each row is a point with its standard error. Dominated ones are grey, the others have names and a line through them.
    """
    import altair as alt

    by_name, points = {row["name"]: row for row in rows}, points_of(rows, axes)
    if not points:
        return {}
    middle = math.sqrt(points[0].size * points[-1].size)
    values = [_value(point, by_name[point.name], axes, middle) for point in points]
    methods = sorted({point.method for point in points})
    colours = [COLOURS.get(method, GREY) for method in methods]
    chosen = alt.selection_point(fields=["method"], bind="legend")
    base = _placed(alt, values, axes).encode(opacity=alt.condition(chosen, alt.value(1), alt.value(0.15)))
    best, rest = base.transform_filter("!datum.dominated"), base.transform_filter("datum.dominated")
    shape = alt.Shape("method:N", title="method", scale=alt.Scale(domain=methods))
    colour = alt.Color("method:N", title="method", scale=alt.Scale(domain=methods, range=colours))
    dots = {"shape": shape, "tooltip": _tooltip(alt, rows)}
    layers = [
        best.mark_line(strokeDash=[4, 4], color=GREY).encode(opacity=alt.value(1)),
        base.mark_rule(color=GREY).encode(y=alt.Y("low:Q", title=_title(axes.kl)), y2="high:Q"),
        best.mark_point(size=110, filled=True).encode(color=colour, **dots).add_params(chosen),
        best.mark_text(align=alt.expr(SIDE), dx=alt.expr(SHIFT), dy=alt.expr(LIFT)).encode(text="label:N"),
    ]
    if any(point.dominated for point in points):
        layers.insert(2, rest.mark_point(size=90, filled=True, color=GREY).encode(**dots))
    return {"front": _finished(alt.layer(*layers), 380)}


def _placed(alt: Any, values: Sequence[Mapping[str, Any]], axes: Axes) -> "altair.Chart":
    """Return a chart of some points with logarithmic axes of size and KL."""
    scale, marks = alt.Scale(type="log", nice=False, padding=24), alt.Axis(values=BITS, labelOverlap=True)
    x = alt.X("size:Q", title=_title(axes.size), scale=scale, axis=marks)
    return alt.Chart(alt.Data(values=values)).encode(x=x, y=alt.Y("kl:Q", title=_title(axes.kl), scale=alt.Scale(type="log")))  # fmt: skip


def _title(key: str) -> str:
    return f"{BY_KEY[key].heading} ({BY_KEY[key].unit})" if key.endswith("kl") else BY_KEY[key].axis


def _tooltip(alt: Any, rows: Sequence[Row]) -> list[Any]:
    known = [metric for metric in SHOWN if any(row.get(metric.key) is not None for row in rows)]
    fields = [("name", "plan"), ("method", "method"), *((f"text.{each.key}", each.heading) for each in known)]
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in fields]


def _finished(chart: "altair.TopLevelMixin", height: int) -> dict[str, Any]:
    return chart.properties(width="container", height=height, background="transparent").to_dict()


def _place(layer: Layer) -> str:
    ends = {"embedding": INPUT, "lm_head": OUTPUT}
    return str(layer.block) if layer.block >= 0 else ends.get(layer.category, ELSEWHERE)


def cells_of(layers: Iterable[Layer], formats: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a cell for each block and kind of layer: the format that most of its layers have, and how many have which.

    The experts of a block are one cell. `formats` maps layers to weight formats.
    """
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for layer in layers:
        counts[_place(layer), layer.category][formats.get(layer.name, UNQUANTIZED)] += 1
    return [
        {
            **{"block": block, "kind": kind, "format": count.most_common(1)[0][0]},
            "formats": ", ".join(name if len(count) == 1 else f"{name} x {many}" for name, many in count.most_common()),
        }
        for (block, kind), count in counts.items()
    ]


def heat_map(plans: Mapping[str, list[dict[str, Any]]], bits: Mapping[str, float]) -> dict[str, Any]:
    """Return the formats of the plans as a Vega-Lite specification, one plan at a time; `bits` of a format order the colours."""
    import altair as alt

    values = [{"plan": name, **each} for name, cells in plans.items() for each in cells]
    formats = sorted({each["format"] for each in values}, key=lambda name: (bits.get(name, 16.0), name))
    blocks = sorted({each["block"] for each in values}, key=lambda name: (name != INPUT, not name.isdigit(), int(name) if name.isdigit() else 0, name))  # fmt: skip
    kinds = list(dict.fromkeys(each["kind"] for each in values))
    plan = alt.param(name="plan", value=next(iter(plans)), bind=alt.binding_select(options=list(plans), name="plan "))
    colour = alt.Color("format:N", sort=formats, scale=alt.Scale(domain=formats, scheme="viridis"), title="weights")
    tooltip = [alt.Tooltip(f"{key}:N") for key in ("kind", "block", "formats")]
    chart = alt.Chart(alt.Data(values=values)).add_params(plan).transform_filter("datum.plan == plan")
    chart = chart.mark_rect(stroke="#8888", strokeWidth=0.5).encode(
        x=alt.X("block:N", sort=blocks, title="block", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("kind:N", sort=kinds, title=None),
        color=colour,
        tooltip=tooltip,
    )
    return _finished(chart, 22 * len(kinds))


def plan_charts(entries: Iterable[Entry], layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """Return {"formats": the formats of the plans} from their plan.json and bits.json; nothing without a plan."""
    plans, bits = {}, {}
    for entry in (each for each in entries if each.is_plan):
        files = entry.files()
        overrides = read_json(files["plan"]).get("overrides", ())
        plans[entry.name] = cells_of(layers, {each["pattern"]: each.get("wq", UNQUANTIZED) for each in overrides})
        parts = read_json(files["bits"]).get("distribution", {})
        bits |= {name: part["bits"] for name, part in parts.items() if "bits" in part}
    return {"formats": heat_map(plans, bits)} if plans else {}
