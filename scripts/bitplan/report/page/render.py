"""A self-contained HTML page from a template. The template is Jinja's: it escapes what it is given."""

from collections.abc import Sequence
from pathlib import Path

from bitplan.core.tables import cells
from bitplan.report.tables import Table

TEMPLATE = "comparison.html.j2"


def page(title: str, tables: Sequence[Table], figure: str) -> str:
    """Return a page with some tables and a figure (SVG text) inside."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    drawing = figure[figure.index("<svg") :]
    return environment.get_template(TEMPLATE).render(title=title, tables=tables, cells=cells, figure=drawing)
