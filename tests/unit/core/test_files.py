"""Files between steps: complete or absent, and the same bytes for the same content."""

import json
import math
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bitplan.core.errors import UserError
from bitplan.core.files import read_json, read_table, temporary_folder, write_aside, write_json, write_table
from tests.conftest import SCRIPTS


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), write_aside(path) as aside:
        aside.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "a.json"
    with write_aside(path) as aside:
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


# ------------------------------------------------------------------------------------------------------- killed processes

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bitplan.core.files import temporary_folder, write_aside
with write_aside(Path(sys.argv[2]) / "a.json") as aside, temporary_folder(Path(sys.argv[2])) as work:
    aside.write_text("half")
    (work / "base.gguf").write_text("large")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_killed_process_has_left_is_removed_at_the_next_write(tmp_path):
    process = subprocess.run([sys.executable, "-c", KILLED, str(SCRIPTS), str(tmp_path)], check=False)
    left = names(tmp_path)
    assert process.returncode == -signal.SIGKILL and len(left) == 2 and all(name.startswith(".") for name in left)
    write_json(tmp_path / "b.json", {})
    assert names(tmp_path) == left | {"b.json"}, "of another file"
    write_json(tmp_path / "a.json", {})
    with temporary_folder(tmp_path) as work:
        assert names(tmp_path) == {"a.json", "b.json", work.name}
    assert names(tmp_path) == {"a.json", "b.json"}


def test_what_is_being_written_is_left_alone(tmp_path):
    with write_aside(tmp_path / "a.json") as first, temporary_folder(tmp_path) as work:
        first.write_text("first")
        with write_aside(tmp_path / "a.json") as second, temporary_folder(tmp_path) as other:
            second.write_text("second")
            assert first.exists() and work.is_dir() and other.is_dir()
        assert (tmp_path / "a.json").read_text() == "second"
    assert (tmp_path / "a.json").read_text() == "first"


def test_names_that_only_look_like_temporary_ones_are_left_alone(tmp_path):
    others = {".a.json.tmp.json", ".a.json.note.tmp.json", ".xa.json.abcdefgh.tmp.json", ".bitplan-work-mine"}
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".a.json.abcdefgh.tmp.json").symlink_to(tmp_path / ".bitplan-work-mine")
    write_json(tmp_path / "a.json", {})
    with temporary_folder(tmp_path):
        pass
    assert names(tmp_path) == others | {"a.json", ".a.json.abcdefgh.tmp.json"}


def test_many_writers_of_one_file_never_take_each_others_away(tmp_path):
    failures = []

    def write(number: int) -> None:
        try:
            for _ in range(50):
                write_json(tmp_path / "a.json", {"number": number})
                with temporary_folder(tmp_path) as work:
                    (work / "x").touch()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and names(tmp_path) == {"a.json"}
