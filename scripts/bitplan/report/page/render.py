"""A self-contained HTML page from a template: data, style, programs and the drawing library are all inside."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bitplan.core.tables import cells
from bitplan.report.answers import Answer
from bitplan.report.results import Entry
from bitplan.report.tables import Table

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Content:
    """What a page shows: sentences first, then charts by the place that they have in the page, tables and answers; `figure` is an
    SVG for readers without scripts. `aside` are the names of rows that the first table may leave out, `links` the files of each row
    as {name: {file: address}}, `offers` what the slider chooses from, `steps` the table of times, and `predicted` what is to be said of
    the plans that are only predicted."""

    title: str
    tables: Sequence[Table]
    figure: str
    headlines: Sequence[str] = ()
    charts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answers: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    aside: frozenset[str] = frozenset()
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    offers: Mapping[str, Any] = field(default_factory=dict)
    steps: Table | None = None
    predicted: str = ""


def links_to(entries: Iterable[Entry], page: Path) -> dict[str, dict[str, str]]:
    """Return {name: {file: address from the page}} of the files of plans and baselines."""
    return {
        entry.name: {
            path.relative_to(entry.folder).as_posix(): quote(os.path.relpath(path, page.parent))
            for path in entry.downloads()
        }
        for entry in entries
    }


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one program that needs no network."""
    from vl_convert import javascript_bundle

    return javascript_bundle().replace("</script", r"<\/script")


def page(content: Content) -> str:
    """Return the page. The template escapes every value."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(FOLDER)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figure = content.figure[content.figure.index("<svg") :]
    library = _library() if content.charts else ""
    template = environment.get_template("comparison.html.j2")
    return template.render(page=content, cells=cells, figure=figure, library=library)
