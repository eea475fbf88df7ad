"""Measured sensitivity goes on where a killed run was, and shards merge to the table of one run."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitplan.core.errors import UserError
from bitplan.core.resume import PartialResults, states_name
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.measure import merged
from tests import warm
from tests.conftest import SCRIPTS
from tests.families import TEXT
from tests.measured_models import ALL, Model

# ---------------------------------------------------------------------------------------------- resuming and shards


def arguments(model: Model, output: Path) -> list[str]:
    """A command whose passes take long enough to be killed within one."""
    words = [SCRIPTS / "sensitivity.py", "--model", model.folder, "--calibration", TEXT, "--length", 64]
    words += ["--sequences", 48, "--threads", 1, "--palette", "int3", "q8_0", "--anchors", "all", "--fisher"]
    return [*map(str, [*words, "--output", output])]


def exit_code(running: warm.Running) -> int:
    return os.waitstatus_to_exitcode(running.wait())


def pieces(output: Path) -> dict[str, int]:
    """What is kept beside an output, whole pieces only, with the time when each was written."""
    folder = PartialResults.folder_of(output).folder
    try:
        return {
            path.name: path.stat().st_mtime_ns
            for path in folder.iterdir()
            if not path.name.startswith(".") and "-reached" not in path.name
        }
    except FileNotFoundError:
        return {}


def killed_after(words: list[str], output: Path, more: int, rest: float, log: Path) -> int:
    """Run a command and kill it `rest` seconds after it has kept `more` pieces more; return its exit code."""
    before = len(pieces(output))
    running = warm.start(words, output.parent.parent, log)
    while not running.ended() and len(pieces(output)) < before + more:
        time.sleep(0.001)
    time.sleep(0 if running.ended() else rest)
    if not running.ended():
        os.kill(running.process, signal.SIGKILL)
    return exit_code(running)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_where_it_was_and_writes_the_same_bytes(llama, tmp_path):
    whole, output = tmp_path / "whole" / "s.tsv", tmp_path / "killed" / "s.tsv"
    assert exit_code(warm.start(arguments(llama, whole), tmp_path, tmp_path / "whole.log")) == 0
    moments, logs = random.Random(0), [tmp_path / f"{run}.log" for run in range(5)]
    for more, log in zip((1, 4, 3, 2), logs, strict=False):
        before = pieces(output)
        code = killed_after(arguments(llama, output), output, more, moments.random() / 5, log)
        after = pieces(output)
        assert code == -signal.SIGKILL and len(after) >= len(before) + more
        assert {name: after[name] for name in before} == before, "a kept piece was made again"
    assert exit_code(warm.start(arguments(llama, output), tmp_path, logs[-1])) == 0
    assert ["resuming from" in log.read_text() for log in logs] == [False, True, True, True, True]
    assert not PartialResults.folder_of(output).folder.exists()
    for name in ("s.tsv", "s.smoothing.safetensors"):
        assert (output.parent / name).read_bytes() == (whole.parent / name).read_bytes()


def test_what_is_kept_of_another_text_is_not_used_and_the_log_says_so(llama, tmp_path, caplog):
    output = tmp_path / "s.tsv"
    kept = PartialResults.open(output, "another")
    kept.save_tensor(states_name(0), torch.zeros(1))
    made = llama.measured(output)
    assert "was created with a different model, text or settings" in caplog.text
    assert made.rows == llama.measured(tmp_path / "other.tsv").rows


def test_a_mistake_in_the_settings_touches_nothing_that_is_kept(llama, tmp_path):
    kept = PartialResults.open(tmp_path / "s.tsv", "x")
    before = pieces(tmp_path / "s.tsv")
    with pytest.raises(UserError, match="SENSITIVITY-MEMORY"):
        llama.measured(tmp_path / "s.tsv", replace(ALL, memory_limit=10))
    assert pieces(tmp_path / "s.tsv") == before and kept.has("of.json")


@pytest.mark.parametrize("measure", [MeasureSettings(), MeasureSettings("1"), MeasureSettings("all", fisher=True)])
@pytest.mark.parametrize("count", [2, 5])
def test_the_tables_of_shards_merge_to_that_of_one_run(llama, tmp_path, measure, count):
    from bitplan.sensitivity.run import write_sensitivity

    def written(path: Path, shard: tuple[int, int]) -> Path:
        made = llama.measured(path, replace(measure, shard=shard))
        write_sensitivity(path, made.rows, made.smoothing)
        return path

    whole = written(tmp_path / "whole.tsv", (1, 1))
    shards = [written(tmp_path / f"{number}.tsv", (number, count)) for number in range(1, count + 1)]
    assert len({len(path.read_text()) for path in (*shards, whole)}) > 1
    for order in (shards, shards[::-1]):
        rows, smoothing = merged(order, llama.opened.info)
        write_sensitivity(tmp_path / "merged.tsv", rows, smoothing)
        for end in (".tsv", ".smoothing.safetensors"):
            assert (tmp_path / f"merged{end}").read_bytes() == (tmp_path / f"whole{end}").read_bytes()
    with pytest.raises(UserError, match="SENSITIVITY-NO-ROW"):
        merged(shards[1:], llama.opened.info)
    with pytest.raises(UserError, match="SENSITIVITY-ROW-TWICE"):
        merged([*shards, shards[0]], llama.opened.info)
