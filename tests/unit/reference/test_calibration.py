"""Calibration windows: from a text by a seed, and from a data set of the hub by its usual name."""

import gzip
import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from bitplan.core.errors import UserError
from bitplan.models.checkpoint import Checkpoint
from bitplan.reference.datasets import TEXT_SETS, calibration_tokens, calibration_windows
from bitplan.reference.opening import prepare_model
from bitplan.reference.text import load_tokenizer, windows
from tests.conftest import SCRIPTS
from tests.families import TEXT
from tests.hub_stand_in import serving


@pytest.fixture
def checkpoint(tiny) -> Checkpoint:
    return Checkpoint.open(tiny)


def test_windows_are_drawn_by_the_seed_and_never_overlap(checkpoint):
    first, again, other = (calibration_tokens(str(TEXT), checkpoint, "", 64, 5, seed) for seed in (0, 0, 1))
    every = windows(checkpoint.folder, TEXT, 64).tolist()
    assert (first == again).all() and not (first == other).all()
    places = [every.index(window) for window in first.tolist()]
    assert places == sorted(set(places)) and len(places) == 5


def test_a_short_text_is_used_whole_and_said_to_be_short(checkpoint, tmp_path, caplog):
    (tmp_path / "t.txt").write_text("once upon a time there was a dog. " * 40)
    tokens = calibration_tokens(str(tmp_path / "t.txt"), checkpoint, "", 64, 1000, 0)
    assert 0 < len(tokens) < 1000 and "fewer than 1000" in caplog.text


def test_a_text_of_less_than_a_window_is_refused(checkpoint, tmp_path):
    (tmp_path / "t.txt").write_text("once upon a time")
    with pytest.raises(UserError, match="TEXT-TOO-SHORT"):
        calibration_tokens(str(tmp_path / "t.txt"), checkpoint, "", 64, 4, 0)


def test_a_name_that_is_no_file_and_no_data_set_is_refused_with_the_nearest(checkpoint):
    with pytest.raises(UserError, match="Did you mean 'wikitext2'"):
        calibration_tokens("wikitext-2", checkpoint, "", 64, 4, 0)


def test_without_a_connection_a_data_set_is_refused_with_the_way_out(checkpoint):
    with pytest.raises(UserError, match="TEXT-NOT-FETCHED"):
        calibration_tokens("c4", checkpoint, "", 64, 4, 0)


PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from bitplan.reference.datasets import calibration_tokens
from bitplan.models.checkpoint import Checkpoint
print(calibration_tokens(sys.argv[3], Checkpoint.open(Path(sys.argv[2])), "", 16, 3, 0).tolist())
"""


@pytest.mark.parametrize("name", TEXT_SETS)
def test_a_data_set_of_the_hub_is_fetched_by_its_usual_name(name, tiny, tmp_path):
    dataset = TEXT_SETS[name]
    story = "once upon a time there was a little dog who ran to the park and saw a red ball . "
    table = pd.DataFrame({dataset.column: [story * 3, "short", story * 2]})
    file = tmp_path / "hub" / dataset.file
    file.parent.mkdir(parents=True)
    if dataset.file.endswith(".parquet"):
        table.to_parquet(file)
    else:
        with gzip.open(file, "wt") as out:
            out.writelines(json.dumps(row) + "\n" for row in table.to_dict("records"))
    with serving(tmp_path / "hub", f"datasets/{dataset.repository}") as hub:
        hub.revisions = {dataset.revision or "main"}
        home = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        (tmp_path / "tokens.py").write_text(PROGRAM)
        line = [sys.executable, str(tmp_path / "tokens.py"), str(SCRIPTS), str(tiny), name]
        result = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **home})
    assert result.returncode == 0, result.stderr[-1500:]
    tokens = json.loads(result.stdout)
    assert len(tokens) == 3 and all(len(window) == 16 for window in tokens)
    assert [request.path for request in hub.asked if request.method == "GET"]


def test_windows_begin_with_bos_where_the_policy_asks_for_it_and_may_be_all_of_a_text(tiny):
    plain, begun = (prepare_model(tiny, "fp32", "cpu", 1, bos) for bos in ("never", "always"))
    every = calibration_windows(plain, str(TEXT), 64, None, 0)
    some = calibration_windows(plain, str(TEXT), 64, 4, 0)
    assert (
        len(every) > 4 and len(some) == 4 and {tuple(row) for row in some.tolist()} < {tuple(r) for r in every.tolist()}
    )
    first = calibration_windows(begun, str(TEXT), 64, 4, 0)
    bos = load_tokenizer(tiny).bos_token_id
    assert first.shape == (4, 64) and (first[:, 0] == bos).all() and not (some[:, 0] == bos).any()


def test_a_data_set_without_an_end_needs_a_number_of_windows(tiny, monkeypatch):
    monkeypatch.setattr("bitplan.reference.datasets.download_texts", lambda name: ["a"])
    with pytest.raises(UserError, match="TEXT-ENDLESS") as refused:
        calibration_tokens("c4", Checkpoint.open(tiny), "", 64, None, 0)
    assert "Give a number" in str(refused.value)
