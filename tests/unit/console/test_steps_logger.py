"""One line for each finished step: what it says of the time that is left."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_logger_plugin_steps import Expected, LogHandler, Run, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (125, "2 min 05 s"), (12_000, "3 h 20 min")],
)
def test_durations_are_said_in_words(seconds, words):
    assert duration(seconds) == words


def run_of(**counts: int) -> Run:
    run = Run(0.0)
    run.plan_({**counts, "all": 1, "total": sum(counts.values()) + 1})
    return run


def test_the_target_rule_is_not_a_step():
    assert run_of(model=1, plan=3).total == 4


def test_nothing_is_said_of_the_time_left_before_a_step_has_finished():
    assert run_of(model=1).seconds_left(10.0) is None


def test_waiting_steps_take_the_mean_of_their_rule_and_others_the_mean_of_all():
    run = run_of(short=3, long=2, other=1)
    for job, (rule, begin, end) in enumerate([("short", 0, 2), ("long", 2, 12)]):
        run.start_(job, rule, "", begin)
        run.finish_(job, end)
    assert run.seconds_left(12.0) == pytest.approx(2 * 2 + 1 * 10 + 1 * 6)


def test_steps_that_run_side_by_side_end_sooner():
    run = run_of(plan=4)
    for job in (1, 2):
        run.start_(job, "plan", "", 0.0)
    for job in (1, 2):
        run.finish_(job, 10.0)
    assert run.seconds_left(10.0) == pytest.approx(10.0), "two of 10 s each were done in 10 s, and two are left"


def estimate(folder: Path, cores: int = 2, **seconds: float) -> Path:
    """Write an estimate.json in which a job of each rule takes so many seconds, and a `timing` runs alone; return its path."""
    rows = [{"rule": rule, "jobs": 2, "seconds": 2 * each, "alone": rule == "timing"} for rule, each in seconds.items()]
    path = folder / "results" / "demo" / "estimate.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"steps": rows, "total": {"cores": cores}}))
    return path


def test_waiting_steps_take_what_the_estimate_says_on_a_machine_that_is_as_slow_as_it_has_been(tmp_path):
    run = run_of(short=1, long=2, timing=1)
    run.expected = Expected.of([estimate(tmp_path, short=2, long=30, timing=8)])
    run.start_(1, "short", "", 0.0)
    run.finish_(1, 4.0)
    assert run.seconds_left(4.0) == pytest.approx(2 * (2 * 30 / 2 + 8)), (
        "twice as slow, two side by side, the timing alone"
    )
    run.start_(2, "long", "", 4.0)
    assert run.seconds_left(14.0) == pytest.approx(2 * (2 * 30 / 2 + 8) - 10 / 2), "a running step has had its time"


def test_a_running_step_that_takes_longer_than_expected_raises_what_is_left(tmp_path):
    run = run_of(short=1, long=1, later=1)
    run.expected = Expected.of([estimate(tmp_path, cores=1, short=4, long=10, later=20)])
    run.start_(1, "short", "", 0.0)
    run.finish_(1, 4.0)
    run.start_(2, "long", "", 4.0)
    assert run.seconds_left(14.0) == pytest.approx(0 + 20), "it is as fast as expected until then"
    slower = (4 + 60) / (4 + 10)
    assert run.seconds_left(64.0) == pytest.approx((60 - slower * 10) + slower * 20)


def test_of_a_step_that_takes_more_than_twice_what_was_expected_it_is_said_and_again_when_that_has_doubled(tmp_path):
    run = run_of(long=1, short=1)
    run.expected = Expected.of([estimate(tmp_path, long=30, short=2)])
    run.start_(1, "long", "tiny", 0.0)
    run.start_(2, "short", "", 0.0)
    told = {now: [(name, seconds) for name, seconds, _ in run.overdue_(now)] for now in (25.0, 61.0, 62.0, 123.0)}
    assert told == {
        25.0: [],
        61.0: [("long tiny", 61.0), ("short ", 61.0)],
        62.0: [],
        123.0: [("long tiny", 123.0), ("short ", 123.0)],
    }


def test_nothing_is_said_while_the_estimate_is_still_to_be_made():
    run = run_of(model=1, estimate=1, plan=9)
    run.start_(1, "model", "", 0.0)
    run.finish_(1, 4.0)
    assert run.seconds_left(4.0) is None
    run.start_(2, "estimate", "", 4.0)
    run.finish_(2, 8.0)
    assert run.seconds_left(8.0) == pytest.approx(36.0)


def test_a_file_that_is_no_estimate_says_nothing(tmp_path):
    (tmp_path / "estimate.json").write_text('{"steps": 1}')
    assert Expected.of([tmp_path / "estimate.json", tmp_path / "none.json"]) == Expected()


def handler(quiet=None, dryrun=False, verbose=False) -> LogHandler:
    made = LogHandler(SimpleNamespace(dryrun=dryrun, quiet=quiet, verbose=verbose), None)
    made.setFormatter(logging.Formatter("%(message)s"))
    return made


def record(event: LogEvent | None = None, level: int = logging.INFO, message: str = "", **more) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", level, "", 0, message, None, None)
    vars(made).update({"event": event, **more} if event else more)
    return made


def test_a_finished_step_is_one_line_with_its_number_name_and_time(capsys):
    steps = handler()
    steps.emit(record(LogEvent.RUN_INFO, stats={"plan_gguf": 2, "all": 1, "total": 3}))
    steps.emit(record(LogEvent.JOB_INFO, jobid=7, rule_name="plan_gguf", wildcards={"model": "demo", "plan": "best"}))
    steps.emit(record(LogEvent.JOB_FINISHED, job_id=7))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "2 steps"
    assert second.startswith("1/2 plan gguf demo best: 0 s") and second.endswith("left")


def test_warnings_and_errors_are_printed_and_other_messages_are_not(capsys):
    steps = handler()
    steps.emit(record(message="Building DAG of jobs..."))
    steps.emit(record(message="something is odd", level=logging.WARNING))
    steps.emit(record(message="something failed", level=logging.ERROR))
    assert capsys.readouterr().err.splitlines() == ["something is odd", "something failed"]


def test_a_step_that_takes_longer_than_expected_is_one_line(capsys, tmp_path):
    steps = handler()
    steps.emit(record(LogEvent.RUN_INFO, stats={"long": 1, "all": 1, "total": 2}))
    steps.steps.expected = Expected.of([estimate(tmp_path, long=30)])
    steps.emit(record(LogEvent.JOB_INFO, jobid=7, rule_name="long", wildcards={"model": "demo"}))
    steps._tell_overdue(steps.steps.running[7][2] + 90)
    assert capsys.readouterr().err.splitlines()[1:] == ["still running: long demo, for 1 min 30 s instead of 30 s"]
    steps.close()


def test_a_run_with_nothing_to_do_says_so(capsys):
    handler().emit(record(message=NOTHING_TO_BE_DONE_MSG))
    assert "Nothing to be done" in capsys.readouterr().err


@pytest.mark.parametrize("quiet", [{Quietness.PROGRESS, Quietness.RULES}, {Quietness.ALL}])
def test_a_quiet_run_prints_warnings_and_errors_alone(capsys, quiet):
    steps = handler(quiet)
    steps.emit(record(LogEvent.RUN_INFO, stats={"plan_gguf": 1, "all": 1, "total": 2}))
    steps.emit(record(LogEvent.JOB_INFO, jobid=7, rule_name="plan_gguf", wildcards={"model": "demo", "plan": "best"}))
    steps.emit(record(LogEvent.JOB_FINISHED, job_id=7))
    steps.emit(record(message=NOTHING_TO_BE_DONE_MSG))
    steps.emit(record(message="something is odd", level=logging.WARNING))
    assert capsys.readouterr().err.splitlines() == ["something is odd"]


def test_a_dry_run_names_each_step_once_and_counts_them_once(capsys):
    steps = handler(dryrun=True)
    for _ in range(2):
        steps.emit(record(LogEvent.RUN_INFO, stats={"plan_gguf": 1, "all": 1, "total": 2}))
    steps.emit(record(LogEvent.JOB_INFO, jobid=7, rule_name="plan_gguf", wildcards={"model": "demo", "plan": "best"}))
    steps.emit(record(LogEvent.JOB_INFO, jobid=8, rule_name="all", wildcards={}))
    assert capsys.readouterr().err.splitlines() == ["1 steps", "plan gguf demo best"]


FAILED = "RuleException:\nCalledProcessError in file 'search.smk', line 1:\nCommand returned non-zero exit status {}."
END = "WorkflowError:\nAt least one job did not complete successfully."


def fail(steps: LogHandler, log: Path, status: int = 2) -> None:
    """Say what Snakemake says of a step that failed with this log."""
    steps.emit(record(level=logging.ERROR, message=FAILED.format(status)))
    steps.emit(record(LogEvent.JOB_ERROR, logging.ERROR, "Error in rule optimal_plan", log=[str(log)]))
    steps.emit(record(level=logging.ERROR, message=END))


@pytest.fixture
def coded_log(tmp_path):
    log = tmp_path / "search.log"
    log.write_text("01:16:31 WARNING odd\nerror [SEARCH-TARGET-OUT-OF-REACH] --target-avg-bits: too few. Choose more\n")
    return log


def test_of_a_step_that_says_what_is_wrong_that_line_and_its_log_are_printed_alone(capsys, coded_log):
    fail(handler(), coded_log)
    said = "error [SEARCH-TARGET-OUT-OF-REACH] --target-avg-bits: too few. Choose more"
    assert capsys.readouterr().err.splitlines() == [f"{said} (log: {coded_log})"]


def test_of_a_step_that_was_killed_all_is_printed_that_snakemake_says(capsys, tmp_path):
    fail(handler(), tmp_path / "absent.log", status=137)
    assert capsys.readouterr().err.splitlines() == [
        *FAILED.format(137).splitlines(),
        "Error in rule optimal_plan",
        *END.splitlines(),
    ]


def test_a_verbose_run_prints_all_that_snakemake_says(capsys, coded_log):
    fail(handler(verbose=True), coded_log)
    assert capsys.readouterr().err.splitlines() == [
        *FAILED.format(2).splitlines(),
        "Error in rule optimal_plan",
        *END.splitlines(),
    ]


def test_what_was_said_of_a_command_is_not_lost_where_its_step_never_reports(capsys):
    steps = handler()
    steps.emit(record(level=logging.ERROR, message=FAILED.format(1)))
    assert capsys.readouterr().err == ""
    steps.close()
    assert "exit status 1" in capsys.readouterr().err


def test_settings_that_are_not_valid_are_told_without_the_line_of_the_rules(capsys):
    problems = "[SETTINGS-UNKNOWN-KEY] plans.p.a: unknown key\n[SETTINGS-INVALID] plans.p.b: is 0"
    text = f'WorkflowError in file "common.smk", line 43:\n{problems}\n  File "common.smk", line 43, in <module>'
    handler().emit(record(level=logging.ERROR, message=text))
    assert capsys.readouterr().err.splitlines() == [f"error {line}" for line in problems.splitlines()]
