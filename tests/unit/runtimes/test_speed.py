"""The speed comparison: ratios are paired, rounds to warm up do not count, a killed run is told."""

import os
import signal
import sys
from pathlib import Path

import pytest

from bitplan.core.errors import UserError
from bitplan.report.comparison import comparison_table
from bitplan.report.figure import draw
from bitplan.report.page.render import Content, page
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
    assert result["models"]["b"]["ratio"] == {"median": 2.0, "min": 2.0, "max": 2.0, "stable": True}
    speeds = result["models"]["a"]["generation_tokens_per_second"]
    assert speeds == {"median": 50.0, "min": 25.0, "max": 100.0, "stable": False}
    assert result["reference"] == "a"


def test_a_reference_that_says_nothing_gives_no_ratio(files):
    rounds = [{"a": run_of(0.0), "b": run_of(5.0)}]
    result = speed.summarize(files, rounds, speed.SpeedSettings(repeats=1, warmup=0))
    assert result["models"]["b"]["ratio"]["median"] is None
    speed.print_table(result)


def timed(monkeypatch, files, speeds, **settings) -> tuple[dict, int]:
    """Time `a` and `b`, `b` with these speeds round by round and `a` with 1; return the result and the rounds run."""
    left = iter(speeds)
    monkeypatch.setattr(speed, "_in_process", lambda path, _: run_of(next(left) if path.name == "b" else 1.0))
    how = speed.SpeedSettings(repeats=3, warmup=1, **settings)
    rounds = list(speed.rounds(files, how))
    return speed.summarize(files, rounds, how), len(rounds)


def test_rounds_go_on_until_the_speeds_are_stable(files, monkeypatch):
    result, rounds = timed(monkeypatch, files, [99, 1.0, 9.0, 5.0, 5.1, 4.9, 77])
    assert rounds == 6 and result["rounds"] == {"run": 5, "used": 3, "stable": True}
    assert result["models"]["b"]["ratio"] == {"median": 5.0, "min": 4.9, "max": 5.1, "stable": True}


def test_speeds_that_never_settle_are_called_unstable_with_their_range(files, monkeypatch, capsys):
    result, rounds = timed(monkeypatch, files, [9, *[3.1, 11.0] * 4], max_repeats=7)
    assert rounds == 8 and result["rounds"] == {"run": 7, "used": 7, "stable": False}
    ratio = result["models"]["b"]["ratio"]
    assert (ratio["min"], ratio["max"], ratio["stable"]) == (3.1, 11.0, False)
    speed.print_table(result)
    shown = capsys.readouterr().out
    assert "unstable 3.10x - 11.00x" in shown and "unstable 3.1 - 11.0" in shown and "--max_repeats" in shown
    assert "1.00x" in shown


def test_unstable_speeds_end_after_a_time_but_never_before_the_counted_rounds(files, monkeypatch):
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(speed.time, "monotonic", lambda: next(clock))
    result, rounds = timed(monkeypatch, files, [9, *[3.1, 11.0] * 8], max_seconds=50)
    # Asked for the time after three and four counted rounds: 30 and 60 seconds.
    assert rounds == 5 and result["rounds"] == {"run": 4, "used": 4, "stable": False}
    clock = iter(range(0, 1000, 30))
    assert timed(monkeypatch, files, [9, *[3.1, 11.0] * 8], max_seconds=1)[1] == 4


def _seen(path, settings):
    return speed.Run(0.1, 1.0, float(os.getpid()), 10**8, (str("llama_cpp" in sys.modules),))


def test_each_run_is_a_process_of_its_own_that_starts_with_the_library_imported(files, monkeypatch):
    monkeypatch.setattr(speed, "_run_any", _seen)
    runs = [run for each in speed.rounds(files, speed.SpeedSettings(repeats=1, warmup=1)) for run in each.values()]
    assert len({run.generation_tokens_per_second for run in runs} | {float(os.getpid())}) == 5
    assert {run.answers for run in runs} == {(str(speed.METHOD == "forkserver"),)}


def test_the_report_calls_an_unstable_speed_so_and_keeps_its_numbers():
    numbers = {"tokens_per_second": 70.8, "ratio_to_reference": 7.08, "ratio_min": 3.1, "ratio_max": 11.0}
    rows = [comparison_row("quiet", 0.1) | numbers | {"speed_stable": True}]
    rows += [comparison_row("noisy", 0.2) | numbers | {"speed_stable": False}]
    quiet, noisy = comparison_table(rows).text().splitlines()[1:3]
    assert "7.08" in quiet and "unstable" not in quiet
    assert noisy.split()[-4:] == ["unstable", "unstable", "3.10", "11.00"]
    assert page(Content("t", [comparison_table(rows)], "<svg/>")).count("<td>unstable</td>") == 2


def test_the_load_time_of_the_original_holds_no_imports(tiny, monkeypatch):
    from transformers import AutoModelForCausalLM

    from bitplan.runtimes.transformers import original

    clock, load, loads = [0.0], AutoModelForCausalLM.from_pretrained, []

    def slow_at_first(*words, **more):
        # The first load imports the family's code.
        loads.append(words)
        clock[0] += 20.0 if len(loads) == 1 else 0.5
        return load(*words, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", slow_at_first)
    monkeypatch.setattr(original.time, "perf_counter", lambda: clock[0])
    assert original._loaded(tiny)[2] == 0.5


def test_one_name_for_two_files_is_refused(files):
    with pytest.raises(UserError, match="SPEED-NAME-TWICE"):
        speed.parse_models([f"x={files['a']}", f"x={files['b']}"])


def _killed(path, settings):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told_and_does_not_hang(files, monkeypatch):
    monkeypatch.setattr(speed, "_run_any", _killed)
    with pytest.raises(UserError, match="SPEED-KILLED"):
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
    lines = [line.split()[0] for line in comparison_table(rows).text().splitlines()[1:4]]
    assert lines == ["good", "worse", "broken"]
    draw(rows, tmp_path / "f.svg", "title")
    assert "broken" not in (tmp_path / "f.svg").read_text()
    assert "broken" in page(Content("title", [comparison_table(rows)], (tmp_path / "f.svg").read_text()))
