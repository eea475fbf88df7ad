"""The speed comparison: ratios are paired, rounds to warm up do not count, a killed run is told."""

import os
import signal
from pathlib import Path

import pytest

from bitplan.core.errors import UserError
from bitplan.report.comparison import as_page, as_text
from bitplan.report.figure import draw
from bitplan.runtimes import speed


def run_of(tokens_per_second: float) -> speed.Run:
    return speed.Run(0.1, 1000.0, tokens_per_second, 10**8, ("answer",))


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * 10)
    return {name: tmp_path / name for name in ("a", "b")}


def test_the_ratio_is_taken_round_by_round_after_the_warm_up(files):
    # The machine halves its speed from round to round; b is always twice as fast as a.
    rounds = [{"a": run_of(s), "b": run_of(2 * s)} for s in (1.0, 100.0, 50.0, 25.0)]
    rounds[0] = {"a": run_of(1.0), "b": run_of(99.0)}
    result = speed.summarize(files, rounds, speed.SpeedSettings(repeats=3, warmup=1))
    assert result["models"]["b"]["ratio"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert result["models"]["a"]["generation_tokens_per_second"] == {"median": 50.0, "min": 25.0, "max": 100.0}
    assert result["reference"] == "a"


def test_a_reference_that_says_nothing_gives_no_ratio(files):
    rounds = [{"a": run_of(0.0), "b": run_of(5.0)}]
    result = speed.summarize(files, rounds, speed.SpeedSettings(repeats=1, warmup=0))
    assert result["models"]["b"]["ratio"]["median"] is None
    speed.print_table(result)


def test_one_name_for_two_files_is_refused(files):
    with pytest.raises(UserError, match="names two files 'x'"):
        speed.parse_models([f"x={files['a']}", f"x={files['b']}"])


def _killed(path, settings):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told_and_does_not_hang(files, monkeypatch):
    monkeypatch.setattr(speed, "_run_any", _killed)
    with pytest.raises(UserError, match="its process was killed"):
        list(speed.rounds(files, speed.SpeedSettings(repeats=1, warmup=0)))


def comparison_row(name: str, kl: float | None) -> dict:
    return {
        "name": name,
        "method": "random",
        "avg_bits_file": 5.0,
        "file_bytes": 10,
        "file_kl": kl,
        "file_kl_error": None,
    }


def test_a_plan_that_answers_nan_stands_last_in_the_table_and_not_in_the_figure(tmp_path):
    rows = [comparison_row("broken", None), comparison_row("worse", 0.2), comparison_row("good", 0.1)]
    lines = [line.split()[0] for line in as_text(rows).splitlines()[1:4]]
    assert lines == ["good", "worse", "broken"]
    draw(rows, tmp_path / "f.svg", "title")
    assert "broken" not in (tmp_path / "f.svg").read_text()
    assert "broken" in as_page(rows, "", (tmp_path / "f.svg").read_text(), "title")
