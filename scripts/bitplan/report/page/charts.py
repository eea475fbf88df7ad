"""The page's front of KL against size as Vega-Lite, made with altair, and what its slider offers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bitplan.core.colours import GREY
from bitplan.core.intervals import half_width
from bitplan.core.tables import cell
from bitplan.report.figure import COLOURS
from bitplan.report.front import Axes, Point, ends_of_axis, points_of
from bitplan.report.metrics import BY_KEY, SHOWN
from bitplan.report.predicted import Prediction
from bitplan.report.tables import Row

if TYPE_CHECKING:
    import altair

# The marks of the axis of sizes: bits per parameter.
BITS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32)
# A diagonal cross, which no method has.
SALTIRE = "M-1,-1L1,1M-1,1L1,-1"
# How names are written, those first that find a place first: font size, opacity.
NAMES = ((11.0, 1.0), (10.0, 0.8), (10.0, 0.7))
FRONT, DOMINATED, PREDICTED = range(len(NAMES))


def _value(point: Point, row: Row, axes: Axes, lowest: float) -> dict[str, Any]:
    """Return what the chart knows of a point; `text` holds its metrics as the tables show them. One below the axis is at `lowest`."""
    text = {metric.key: cell(row.get(metric.key), metric.format) for metric in SHOWN}
    text[axes.kl] += f" ± {half_width(row[axes.error]):.2g} (95 %)" if row.get(axes.error) else ""
    ends = {"low": point.kl - point.error, "high": point.kl + point.error}
    return {**asdict(point), **ends, "text": text, "kind": _kind(point), **({"kl": lowest} if point.below else {})}


def front_charts(
    rows: Sequence[Row], axes: Axes, predicted: Sequence[Mapping[str, Any]] = ()
) -> dict[str, dict[str, Any]]:
    """Return {"front": KL against size as a Vega-Lite specification}; nothing where no row has both.

    Each row is a point with its 95 % interval in its method's colour, full on the front and hollow elsewhere, with a line through
    the front. `predicted` are the values of `predicted_values`: a thin line, and diagonal crosses for plans of one format.
    """
    import altair as alt

    by_name, points = {row["name"]: row for row in rows}, points_of(rows, axes)
    if not points:
        return {}
    on_axis = [point.kl for point in points if not point.below]
    # A little below the best that was measured, not as far down as the largest plans.
    shown = [value for value in predicted if value["kl"] >= min(on_axis, default=0.0) / 2]
    ends = ends_of_axis((*on_axis, *(value["kl"] for value in shown)))
    values = [_value(point, by_name[point.name], axes, ends[0]) for point in points]
    layers = [
        *_predicted_layers(alt, _placed(alt, shown, axes, ends), shown),
        _slider_rule(alt, points[0].size),
        *_measured_layers(alt, _placed(alt, values, axes, ends), rows, points),
        _names_layer(alt, _placed(alt, _names(values, shown), axes, ends)),
    ]
    return {"front": finished(alt.layer(*layers), 400)}


def _kind(point: Point) -> str:
    """Return the name of the layer that draws a point."""
    return "below" if point.below else "rest" if point.dominated else "best"


def _measured_layers(
    alt: Any, base: "altair.Chart", rows: Sequence[Row], points: Sequence[Point]
) -> list["altair.Chart"]:
    """Return the layers of the points that were measured: the line of the front, error bars, and the marks."""
    chosen = alt.selection_point(fields=["method"], bind="legend")
    base = base.encode(opacity=alt.condition(chosen, alt.value(1), alt.value(0.15)))
    of_kind = {kind: base.transform_filter(f"datum.kind == '{kind}'") for kind in ("rest", "best", "below")}
    line = of_kind["best"].mark_line(strokeDash=[4, 4], color=GREY).encode(opacity=alt.value(1))
    errors = base.transform_filter("!datum.below").mark_rule(color=GREY).encode(y=alt.Y("low:Q"), y2="high:Q")
    # The drawing library complains of a layer without points.
    kinds = {_kind(point) for point in points}
    layers = {**({"front": line} if "best" in kinds else {}), **({"errors": errors} if kinds != {"below"} else {})}
    layers |= {kind: made for kind, made in _marks(alt, of_kind, rows, points).items() if kind in kinds}
    first, *others = (layer.properties(name=name) for name, layer in layers.items())
    return [first.add_params(chosen), *others]


def _marks(
    alt: Any, of_kind: Mapping[str, "altair.Chart"], rows: Sequence[Row], points: Sequence[Point]
) -> dict[str, "altair.Chart"]:
    """Return the marks of each kind of point: full on the front, hollow where dominated, an arrow at the lower edge for those below."""
    methods = sorted({point.method for point in points})
    colours = [COLOURS.get(method, GREY) for method in methods]
    colour = alt.Color("method:N", title="method", scale=alt.Scale(domain=methods, range=colours))
    shape = alt.Shape("method:N", title="method", scale=alt.Scale(domain=methods))
    marks = {
        "rest": of_kind["rest"].mark_point(size=80, filled=False, strokeWidth=1.5).encode(shape=shape),
        "best": of_kind["best"].mark_point(size=110, filled=True).encode(shape=shape),
        "below": of_kind["below"].mark_point(size=110, filled=True, shape="triangle-down", yOffset=-7),
    }
    return {kind: made.encode(color=colour, tooltip=_tooltip(alt, rows)) for kind, made in marks.items()}


def _predicted_layers(alt: Any, base: "altair.Chart", values: Sequence[Mapping[str, Any]]) -> list["altair.Chart"]:
    """Return the layers of what the sensitivity table predicts; none without values. The page's style has the line's colour."""
    tooltip = [
        alt.Tooltip("name:N", title="plan"),
        *(alt.Tooltip(f"{key}:N") for key in ("bits", "predicted KL", "formats")),
    ]
    line, dots = (base.transform_filter(f"{sign}datum.uniform") for sign in ("!", ""))
    if not values:
        return []
    return [
        line.mark_line(style="predicted").properties(name="predicted"),
        line.mark_circle(size=40, opacity=0).encode(tooltip=tooltip),
        dots.mark_point(size=55, filled=False, shape=SALTIRE, style="uniform")
        .encode(tooltip=tooltip)
        .properties(name="uniform"),
    ]


def _names(measured: Sequence[Mapping[str, Any]], predicted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the names of all points and where these are."""
    ranks = [(each, DOMINATED if each["dominated"] else FRONT, each["label"]) for each in measured]
    ranks += [(each, PREDICTED, each["name"]) for each in predicted if each["uniform"]]
    return [
        {"label": label, "size": each["size"], "kl": each["kl"], "rank": rank, "font": font, "strength": strength}
        for each, rank, label in ranks
        for font, strength in (NAMES[rank],)
    ]


def _names_layer(alt: Any, base: "altair.Chart") -> "altair.Chart":
    """Return the names; the page moves each to where it covers neither a mark, nor a line, nor another name."""
    plain = {"scale": None, "legend": None}
    looks = {"size": alt.Size("font:Q", **plain), "fillOpacity": alt.FillOpacity("strength:Q", **plain)}
    return base.mark_text().encode(text="label:N", detail="rank:Q", **looks).properties(name="names")


def _slider_rule(alt: Any, start: float) -> "altair.Chart":
    """Return a line at the size that the slider is at: the page sets the parameter `afforded`."""
    at = alt.param(name="afforded", value=start)
    rule = alt.Chart(alt.Data(values=[{}])).transform_calculate(size="afforded")
    return rule.mark_rule(color=GREY, strokeDash=[2, 3]).encode(x="size:Q").add_params(at).properties(name="slider")


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


def _placed(alt: Any, values: Sequence[Mapping[str, Any]], axes: Axes, ends: tuple[float, float]) -> "altair.Chart":
    """Return a chart of some points with logarithmic axes of size and of KL between `ends`."""
    marks = alt.Axis(values=BITS, labelOverlap=True, labelSeparation=6)
    x = alt.X("size:Q", title=_title(axes.size), scale=alt.Scale(type="log", nice=False, padding=24), axis=marks)
    steps = alt.Axis(labelOverlap=True, labelSeparation=3)
    y = alt.Y("kl:Q", title=_title(axes.kl), scale=alt.Scale(type="log", domain=list(ends), nice=False), axis=steps)
    return alt.Chart(alt.Data(values=values)).encode(x=x, y=y)


def _title(key: str) -> str:
    return f"{BY_KEY[key].heading} ({BY_KEY[key].unit})" if key.endswith("kl") else BY_KEY[key].axis


def _tooltip(alt: Any, rows: Sequence[Row]) -> list[Any]:
    known = [metric for metric in SHOWN if any(row.get(metric.key) is not None for row in rows)]
    fields = [("name", "plan"), ("method", "method"), *((f"text.{each.key}", each.heading) for each in known)]
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in fields]


def finished(chart: "altair.TopLevelMixin", height: int) -> dict[str, Any]:
    """Return a chart as wide as its place, as a specification."""
    # The room of a legend changes with what it lists.
    autosize = {"type": "fit-x", "contains": "padding", "resize": True}
    return chart.properties(width="container", height=height, background="transparent", autosize=autosize).to_dict()
