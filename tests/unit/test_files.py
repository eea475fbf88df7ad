"""Files between steps: whole or not at all, and the same bytes for the same content."""

import json
import math

import pytest

from bitplan.errors import UserError
from bitplan.files import read_json, read_table, write_json, write_table, written_aside


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), written_aside(path) as aside:
        aside.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "a.json"
    with written_aside(path) as aside:
        aside.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"


def test_json_has_sorted_keys_fixed_digits_and_no_nan(tmp_path):
    for name, content in {"a": {"y": 0.1 + 0.2, "x": math.nan}, "b": {"x": math.nan, "y": 0.3}}.items():
        write_json(tmp_path / name, content)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"schema_version": 1, "x": None, "y": 0.3}


def test_tables_keep_empty_cells_for_what_is_not_a_number(tmp_path):
    write_table(tmp_path / "t.tsv", [{"a": 1, "b": math.nan}, {"a": 0.1, "b": None}], ("a", "b"))
    assert read_table(tmp_path / "t.tsv") == [{"a": "1", "b": ""}, {"a": "0.1", "b": ""}]


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[1]", "no JSON object"), (None, "cannot be read")]
)
def test_a_broken_json_file_is_named(tmp_path, text, message):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(path)


def test_a_table_without_a_required_column_is_named(tmp_path):
    write_table(tmp_path / "t.tsv", [{"a": 1}], ("a",))
    with pytest.raises(UserError, match="no column b"):
        read_table(tmp_path / "t.tsv", ("a", "b"))
