"""The table of formats that docs/formats.md shows: what the command makes, and its signal to noise."""

import math
from itertools import pairwise

import pytest
import torch

from bitplan.core.errors import UserError
from bitplan.formats.describe import BEGIN, END, HEADINGS, describe, draws, insert_table, sqnr
from bitplan.formats.table import FORMATS
from bitplan.runtimes.gguf.format_types import stored_as
from tests.unit.formats.values import ASYMMETRIC, DOCUMENT, SYMMETRIC


@pytest.fixture(scope="module")
def described() -> dict:
    samples = draws(512 * 1024, seed=0)
    return {name: describe(form, samples, stored_as(form)) for name, form in FORMATS.items()}


def table_of(text: str) -> dict[str, dict[str, str]]:
    """The rows of the table between the marks, by format."""
    lines = text.split(BEGIN)[1].split(END)[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(HEADINGS)
    return {row[0]: dict(zip(HEADINGS, row, strict=True)) for row in cells[2:]}


def test_the_table_of_the_document_is_what_the_command_makes(described):
    written = table_of(DOCUMENT.read_text(encoding="utf-8"))
    assert list(written) == list(described)
    for name, row in described.items():
        for heading, cell in zip(HEADINGS, row.cells(), strict=True):
            if heading.endswith(" dB"):
                assert float(written[name][heading]) == pytest.approx(float(cell), abs=0.1), (name, heading)
            else:
                assert written[name][heading] == cell, (name, heading)


def test_more_bits_of_a_family_keep_more(described):
    for family in (ASYMMETRIC, SYMMETRIC, ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]):
        for lower, higher in pairwise(family):
            assert all(described[lower].sqnr[kind] + 3 < value for kind, value in described[higher].sqnr.items())


@pytest.mark.parametrize("values", [1, 1024, 5000])
def test_draws_have_unit_variance_and_whole_rows(values):
    samples = draws(values, 3)
    assert all(drawn.shape == (-(-values // 1024), 1024) for drawn in samples.values())
    assert all(0.7 < drawn.square().mean() < 1.4 for drawn in samples.values())


def test_signal_to_noise_worked_out_by_hand():
    assert sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.5, 4.0])) == pytest.approx(20.0)
    assert sqnr(torch.ones(2), torch.ones(2)) == math.inf


def test_the_command_replaces_the_table_and_nothing_else(command, tmp_path):
    path = tmp_path / "formats.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    result = command("describe_formats.py", "--formats", "mxfp4_mse", "q8_0", "--values", 4096, "--output", path)
    text = path.read_text()
    assert text == f"before\n{BEGIN}\n{result.stdout.strip()}\n{END}\nafter\n"
    assert list(table_of(text)) == ["mxfp4_mse", "q8_0"]


def test_a_file_without_a_place_for_the_table_is_refused():
    with pytest.raises(UserError, match="FORMAT-NO-PLACE"):
        insert_table(f"text {END} {BEGIN}", "table", "x.md")
