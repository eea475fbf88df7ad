"""A summary of each number format: bits, scales, signal-to-noise ratio and the type that a runtime stores."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.tables import markdown_head, markdown_row
from bitplan.formats.base import Format

COLUMNS = 1024  # a multiple of every block in the table
BEGIN, END = "<!-- formats: begin -->", "<!-- formats: end -->"
# Each with variance 1: Student's t of n degrees of freedom has n / (n - 2), Laplace's of scale b has 2 b^2.
DRAWS = {
    "Gaussian": lambda random, shape: random.standard_normal(shape),
    "Student-t": lambda random, shape: random.standard_t(5, shape) * math.sqrt(3 / 5),
    "Laplace": lambda random, shape: random.laplace(0.0, math.sqrt(1 / 2), shape),
}
HEADINGS = ("format", "bits", "block", "scales", *(f"{name} dB" for name in DRAWS), "activations", "GGUF type", "exact")


@dataclass(frozen=True)
class FormatSummary:
    """A format's row. `scales` are bits per value, None if they are inside a GGUF type's block; `sqnr` is {distribution: dB}."""

    name: str
    bits: float
    block: str
    scales: float | None
    sqnr: Mapping[str, float]
    for_activations: bool
    stored_type: str
    exact: str

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells under `HEADINGS`."""
        scales = "inside" if self.scales is None else f"{self.scales:.9g}"
        figures = (f"{self.sqnr[name]:.1f}" for name in DRAWS)
        facts = (_yes(self.for_activations), self.stored_type, self.exact)
        return (self.name, f"{self.bits:.9g}", self.block, scales, *figures, *facts)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def draws(values: int, seed: int) -> dict[str, Tensor]:
    """Return {distribution: at least `values` numbers of unit variance, (rows, 1024) float32}; each starts from `seed`."""
    shape = (-(-values // COLUMNS), COLUMNS)
    return {
        name: torch.from_numpy(draw(np.random.default_rng(seed), shape).astype(np.float32))
        for name, draw in DRAWS.items()
    }


def sqnr(values: Tensor, quantized: Tensor) -> float:
    """Return the signal-to-noise ratio 10 log10(sum x^2 / sum (x - q)^2) in dB; infinity if there is no error."""
    noise = (quantized.double() - values.double()).square().sum().item()
    return 10 * math.log10(values.double().square().sum().item() / noise) if noise else math.inf


def describe(form: Format, samples: Mapping[str, Tensor], stored: tuple[str, str]) -> FormatSummary:
    """Return the row of a format, with its own block; `samples` maps each distribution to (rows, 1024) float32.

    `stored` is the type that a file has for the format, and whether it holds it exactly (a cell).
    """
    ratios = {name: sqnr(values, form.roundtrip(values)) for name, values in samples.items()}
    scales = None if form.family == "gguf" else form.bits_per_value() - form.element_bits
    block = str(form.block) if form.scope == "block" else form.scope
    facts = (form.for_activations, *stored)
    return FormatSummary(form.name, form.bits_per_value(), block, scales, ratios, *facts)


def markdown_table(rows: Iterable[FormatSummary]) -> str:
    """Return the rows as a Markdown table, without a final newline."""
    return "\n".join((markdown_head(HEADINGS), *(markdown_row(row.cells()) for row in rows)))


def insert_table(text: str, table: str, where: object) -> str:
    """Return `text` with the content between the two marks replaced by `table`. Raises `UserError` when a mark is missing."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise user_error(
            "FORMAT-NO-PLACE", where, f"lacks the markers of the table: {BEGIN} and {END}", "Add these two lines to it"
        )
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"
