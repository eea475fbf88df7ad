"""The page's front of KL against size as Vega-Lite, made with altair, and what its slider offers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bitplan.core.colours import GREY
from bitplan.core.tables import cell
from bitplan.report.figure import COLOURS
from bitplan.report.front import Axes, Point, points_of
from bitplan.report.metrics import BY_KEY, SHOWN
from bitplan.report.predicted import Prediction
from bitplan.report.tables import Row

if TYPE_CHECKING:
    import altair

# The marks of the axis of sizes: bits per parameter.
BITS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32)
# A label stands on the right above its point, or in the right half on the left below it, where the line does not cross it.
SIDE, SHIFT, LIFT = (f"datum.at_right ? {right} : {left}" for right, left in (("'right'", "'left'"), (-4, 9), (15, -9)))


def _value(point: Point, row: Row, axes: Axes, middle: float) -> dict[str, Any]:
    """Return what the chart knows of a point; `text` holds its metrics as the tables show them."""
    text = {metric.key: cell(row.get(metric.key), metric.format) for metric in SHOWN}
    text[axes.kl] += f" ± {row[axes.error]:.1g}" if row.get(axes.error) else ""
    ends = {"low": point.kl - point.error, "high": point.kl + point.error}
    return {**asdict(point), **ends, "text": text, "at_right": point.size > middle}


def front_charts(
    rows: Sequence[Row], axes: Axes, predicted: Sequence[Mapping[str, Any]] = ()
) -> dict[str, dict[str, Any]]:
    """Return {"front": KL against size as a Vega-Lite specification}; nothing where no row has both.

    Each row is a point with its standard error. Dominated ones are grey, the others have names and a line through them.
    `predicted` are the values of `predicted_values`: a thin line, and hollow points for plans of one format.
    """
    import altair as alt

    by_name, points = {row["name"]: row for row in rows}, points_of(rows, axes)
    if not points:
        return {}
    middle, lowest = math.sqrt(points[0].size * points[-1].size), min(point.kl for point in points)
    values = [_value(point, by_name[point.name], axes, middle) for point in points]
    shown = [value for value in predicted if value["kl"] >= lowest]
    base = _placed(alt, values, axes)
    layers = [
        *_predicted_layers(alt, _placed(alt, shown, axes), shown),
        _slider_rule(alt, middle),
        *_measured_layers(alt, base, rows, axes),
    ]
    return {"front": finished(alt.layer(*layers), 400)}


def _measured_layers(alt: Any, base: "altair.Chart", rows: Sequence[Row], axes: Axes) -> list["altair.Chart"]:
    """Return the layers of the points that were measured, as one: their line, error bars, marks and names."""
    points = points_of(rows, axes)
    methods = sorted({point.method for point in points})
    colours = [COLOURS.get(method, GREY) for method in methods]
    chosen = alt.selection_point(fields=["method"], bind="legend")
    base = base.encode(opacity=alt.condition(chosen, alt.value(1), alt.value(0.15)))
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
    return layers


def _predicted_layers(alt: Any, base: "altair.Chart", values: Sequence[Mapping[str, Any]]) -> list["altair.Chart"]:
    """Return the layers of what the sensitivity table predicts; none without values."""
    tooltip = [
        alt.Tooltip("name:N", title="plan"),
        *(alt.Tooltip(f"{key}:N") for key in ("bits", "predicted KL", "formats")),
    ]
    line, dots = (base.transform_filter(f"{sign}datum.uniform") for sign in ("!", ""))
    if not values:
        return []
    return [
        line.mark_line(color=COLOURS["optimal"], strokeWidth=1.5, opacity=0.55),
        line.mark_circle(size=40, opacity=0).encode(tooltip=tooltip),
        dots.mark_point(size=70, filled=False, shape="diamond", color=COLOURS["uniform"]).encode(tooltip=tooltip),
        dots.mark_text(align="left", dx=8, dy=4, fontSize=9, opacity=0.8).encode(text="name:N"),
    ]


def _slider_rule(alt: Any, start: float) -> "altair.Chart":
    """Return a line at the size that the slider is at: the page sets the parameter `afforded`."""
    at = alt.param(name="afforded", value=start)
    rule = alt.Chart(alt.Data(values=[{}])).transform_calculate(size="afforded")
    return rule.mark_rule(color=GREY, strokeDash=[2, 3]).encode(x="size:Q").add_params(at)


def predicted_values(known: Prediction, overhead: float) -> list[dict[str, Any]]:
    """Return what the chart and the slider know of the predicted plans; `overhead` is added to their bits."""
    plans = [*((plan, False) for plan in known.front), *((plan, True) for plan in known.uniform)]
    return [
        {
            **{"name": plan.name, "uniform": uniform, "size": plan.bits + overhead, "kl": plan.kl},
            **{"bits": f"{plan.bits:.3f}", "predicted KL": f"{plan.kl:.6f}", "formats": known.formats(plan)},
        }
        for plan, uniform in plans
        if plan.kl > 0
    ]


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


def finished(chart: "altair.TopLevelMixin", height: int) -> dict[str, Any]:
    """Return a chart as wide as its place, as a specification."""
    return chart.properties(width="container", height=height, background="transparent").to_dict()
