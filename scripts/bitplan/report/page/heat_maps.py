"""The page's heat maps as Vega-Lite, blocks by kinds of layers: the formats of a plan, and what each format costs."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitplan.core.files import read_json
from bitplan.formats.facts import UNQUANTIZED
from bitplan.models.layers import Layer
from bitplan.report.page.charts import finished
from bitplan.report.predicted import Prediction
from bitplan.report.results import Entry

if TYPE_CHECKING:
    import altair

INPUT, OUTPUT, ELSEWHERE = "in", "out", "other"


def _place(layer: Layer) -> str:
    ends = {"embedding": INPUT, "lm_head": OUTPUT}
    return str(layer.block) if layer.block >= 0 else ends.get(layer.category, ELSEWHERE)


def cells_of(layers: Iterable[Layer], formats: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a cell for each block and kind of layer: the format that most of its layers have, and how many have which.

    The experts of a block are one cell; an output matrix that shares the embedding's weights has none. `formats` maps layers to weight formats.
    """
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for layer in (each for each in layers if not each.tied):
        counts[_place(layer), layer.category][formats.get(layer.name, UNQUANTIZED)] += 1
    return [
        {
            **{"block": block, "kind": kind, "format": count.most_common(1)[0][0]},
            "formats": ", ".join(name if len(count) == 1 else f"{name} x {many}" for name, many in count.most_common()),
        }
        for (block, kind), count in counts.items()
    ]


def _blocks(values: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the blocks of some cells in the order of the model: the input, the blocks by number, what is outside them."""
    names = {each["block"] for each in values}
    return sorted(names, key=lambda name: (name != INPUT, not name.isdigit(), int(name) if name.isdigit() else 0, name))


def _grid(alt: Any, values: Sequence[Mapping[str, Any]], choice: str, options: Sequence[str]) -> "altair.Chart":
    """Return the cells of blocks by kinds where the field `choice` has the value that the reader picks from a list."""
    kinds = list(dict.fromkeys(each["kind"] for each in values))
    chosen = alt.param(name=choice, value=options[0], bind=alt.binding_select(options=list(options), name=f"{choice} "))
    chart = alt.Chart(alt.Data(values=values)).add_params(chosen).transform_filter(f"datum.{choice} == {choice}")
    names, axis = _blocks(values), alt.Axis(labelAngle=0, labelOverlap=True)
    blocks = alt.X("block:N", sort=names, scale=alt.Scale(domain=names), title="block", axis=axis)
    rows = alt.Y("kind:N", sort=kinds, scale=alt.Scale(domain=kinds), title=None)
    return chart.mark_rect(stroke="#8888", strokeWidth=0.5).encode(x=blocks, y=rows)


def _height(values: Iterable[Mapping[str, Any]]) -> int:
    return 22 * len({each["kind"] for each in values})


def heat_map(plans: Mapping[str, list[dict[str, Any]]], bits: Mapping[str, float]) -> dict[str, Any]:
    """Return the formats of the plans as a Vega-Lite specification, one plan at a time; `bits` of a format order the colours."""
    import altair as alt

    values = [{"plan": name, **each} for name, cells in plans.items() for each in cells]
    formats = sorted({each["format"] for each in values}, key=lambda name: (bits.get(name, 16.0), name))
    colour = alt.Color(
        "format:O", sort=formats, scale=alt.Scale(domain=formats), title="weights", legend=_legend(alt, plans, formats)
    )
    tooltip = [alt.Tooltip(f"{key}:N") for key in ("kind", "block", "formats")]
    chart = _grid(alt, values, "plan", list(plans)).encode(color=colour, tooltip=tooltip)
    return finished(chart, _height(values))


def _legend(alt: Any, plans: Mapping[str, list[dict[str, Any]]], formats: Sequence[str]) -> "altair.Legend":
    """Return a legend of the formats that the chosen plan has, in as many rows as they need."""
    used = {name: {each["format"] for each in cells} for name, cells in plans.items()}
    of_plan = {name: [form for form in formats if form in used[name]] for name in plans}
    return alt.Legend(values=alt.expr(f"({json.dumps(of_plan)})[plan]"), columns=alt.expr("max(2, floor(width / 90))"))


def price_cells(layers: Iterable[Layer], known: Prediction) -> list[dict[str, Any]]:
    """Return a cell for each block, kind of layer and format that any of its layers has in the table: the sum of their KL, in nats."""
    rows = {name: row for row, name in enumerate(known.table.layers)}
    sums: dict[tuple[str, str, str], float] = defaultdict(float)
    for layer in (each for each in layers if each.name in rows):
        for column, form in enumerate(known.table.formats):
            if known.table.has[rows[layer.name], column]:
                sums[form, _place(layer), layer.category] += float(known.table.kld[rows[layer.name], column])
    return [
        {"format": form, "block": block, "kind": kind, "kl": kl, "price": f"{kl:.3g}"}
        for (form, block, kind), kl in sums.items()
    ]


def price_map(cells: Sequence[Mapping[str, Any]], formats: Sequence[str]) -> dict[str, Any]:
    """Return what a format costs in KL, as a Vega-Lite specification, one format at a time."""
    import altair as alt

    # A logarithmic scale has no 0: a layer that no token reached costs nothing.
    lowest = min((each["kl"] for each in cells if each["kl"] > 0), default=1.0)
    values = [{**each, "shown": max(each["kl"], lowest)} for each in cells]
    scale = alt.Scale(type="log", reverse=True)
    legend = alt.Legend(format="~g", tickCount=3, gradientLength=160)
    colour = alt.Color("shown:Q", scale=scale, title="KL in nats", legend=legend)
    tooltip = [
        alt.Tooltip(f"{key}:N", title=title) for key, title in (("kind", "kind"), ("block", "block"), ("price", "KL"))
    ]
    chart = _grid(alt, values, "format", formats).encode(color=colour, tooltip=tooltip)
    return finished(chart, _height(values))


def price_charts(layers: Iterable[Layer], known: Prediction | None) -> dict[str, dict[str, Any]]:
    """Return {"prices": KL of every kind of layer in every format} from the sensitivity table; nothing without one."""
    cells = price_cells(layers, known) if known else []
    used = {each["format"] for each in cells}
    return {"prices": price_map(cells, [form for form in known.table.formats if form in used])} if used else {}


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
