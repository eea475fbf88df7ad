"""The page's charts and what its slider offers, from the rows of a comparison and what its sensitivity table predicts."""

from collections.abc import Sequence
from typing import Any

from bitplan.models.layers import ModelInfo
from bitplan.report.front import Axes
from bitplan.report.page.charts import front_charts, predicted_values
from bitplan.report.page.heat_maps import plan_charts, price_charts
from bitplan.report.page.offers import offers, predicted_offers
from bitplan.report.predicted import Prediction, file_overhead
from bitplan.report.results import Entry
from bitplan.report.tables import Row


def charts_of(
    rows: Sequence[Row], axes: Axes, entries: Sequence[Entry], info: ModelInfo, known: Prediction | None
) -> dict[str, Any]:
    """Return the charts by their places in the page: the front, the formats of each plan, and what each format costs."""
    curve = predicted_values(known, file_overhead(rows, axes)) if known else ()
    return {
        **front_charts(rows, axes, curve),
        **plan_charts(entries, info.layers),
        **price_charts(info.layers, known),
    }


def offers_of(
    rows: Sequence[Row], axes: Axes, info: ModelInfo, known: Prediction | None, calibration: str
) -> dict[str, Any]:
    """Return what the slider chooses from: the files that were made, and predicted plans with a command on the `calibration` text."""
    overhead = file_overhead(rows, axes)
    return {**offers(rows, axes, info), **predicted_offers(known, info, calibration, overhead)}
