"""A logger plugin of Snakemake: `snakemake --logger steps` prints one line for each finished step, with its time and the time left; a
dry run prints one line for each step that would run.

Warnings are printed in full. Of a step that failed with an error of the project, that error and the path of its log are printed; of others, and
with `--verbose`, all that Snakemake says. Its own log file still has everything. Snakemake finds the plugin by its
name wherever `scripts/` is on Python's path. With `--quiet` only warnings and errors are printed.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_steps.errors import OF_A_COMMAND, OF_THE_END, coded_errors, errors_in_logs

TARGET, ESTIMATE = "all", "estimate"
SHORT = 15.0  # seconds: of a step that takes less, no time is worth a word
LOOK_EVERY = 10.0  # seconds between two looks at the running steps


def duration(seconds: float) -> str:
    """Return a duration in words: `8 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


@dataclass(frozen=True)
class Expected:
    """What estimates of models say: seconds of a job by rule, the rules whose jobs run alone, and how many cores the others share."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    cores: int = 1

    @classmethod
    def of(cls, files: Iterable[Path]) -> "Expected":
        """Return what some estimate.json say, on average over their models; a file that is none says nothing."""
        found: dict[str, list[float]] = {}
        alone, cores = set(), 1
        for path in files:
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                cores = content["total"]["cores"]
                for row in content["steps"]:
                    found.setdefault(row["rule"], []).append(row["seconds"] / row["jobs"])
                    alone |= {row["rule"]} if row["alone"] else set()
            except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
                continue
        return cls({rule: sum(each) / len(each) for rule, each in found.items()}, frozenset(alone), cores)


@dataclass
class Run:
    """What is known of a run. `waiting`: steps not yet finished, by rule; `seconds`: times of the finished ones, by rule; `told`: after how many
    seconds it was said of a running step that it takes longer than expected."""

    started: float
    total: int = 0
    finished: int = 0
    waiting: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    running: dict[int, tuple[str, str, float]] = field(default_factory=dict)
    expected: Expected = Expected()
    told: dict[int, float] = field(default_factory=dict)

    def plan_(self, stats: Mapping[str, int]) -> None:
        """Take the number of steps of each rule from Snakemake's statistics of a graph."""
        self.waiting = {rule: count for rule, count in stats.items() if rule not in ("total", TARGET)}
        self.total = sum(self.waiting.values())

    def start_(self, job: int, rule: str, name: str, now: float) -> None:
        """Note that a step started."""
        self.running[job] = (rule, name, now)

    def finish_(self, job: int, now: float) -> tuple[str, str, float] | None:
        """Note that a step finished. Returns its rule, name and seconds; None for one that was never seen to start."""
        if job not in self.running:
            return None
        rule, name, started = self.running.pop(job)
        self.finished += 1
        self.waiting[rule] = max(0, self.waiting.get(rule, 1) - 1)
        self.seconds.setdefault(rule, []).append(now - started)
        return rule, name, now - started

    def seconds_left(self, now: float) -> float | None:
        """Return an estimate of the seconds left; None before the first step has finished, and while the model's estimate is still to be made.

        A waiting step takes what its rule is `expected` to, times how much longer finished steps took than they were expected to; the mean of its
        rule's where nothing is expected of it, or of all finished steps. Of running steps the time that they have had is gone; one that takes
        longer than expected takes as much longer again. As many run side by side as did so far, or as the estimate says; those that run alone
        come one after another.
        """
        times = [each for one in self.seconds.values() for each in one]
        busy, elapsed = sum(times), now - self.started
        if not times or elapsed <= 0 or (self.waiting.get(ESTIMATE) and not self.expected.seconds):
            return None
        each = self._expectations(busy / len(times), now)
        left = {rule: count * each[rule] for rule, count in self.waiting.items()}
        for rule, _, started in self.running.values():
            if rule in left:
                left[rule] += abs(each[rule] - (now - started)) - each[rule]
        alone = sum(seconds for rule, seconds in left.items() if rule in self.expected.alone)
        beside = self.expected.cores if self.expected.seconds else max(1.0, busy / elapsed)
        return alone + (sum(left.values()) - alone) / beside

    def overdue_(self, now: float) -> list[tuple[str, float, float]]:
        """Return name, seconds so far and expected seconds of each step that runs for more than twice what was expected; the same step again
        when it has doubled its time."""
        found = []
        for job, (rule, name, started) in self.running.items():
            seconds, expected = now - started, self.expected.seconds.get(rule)
            if expected and seconds > 2 * self.told.get(job, max(expected, SHORT)):
                self.told[job] = seconds
                found.append((f"{rule.replace('_', ' ')} {name}", seconds, expected))
        return found

    def _expectations(self, mean: float, now: float) -> dict[str, float]:
        """Return the seconds that a step of each rule is expected to take, from the estimate, from the finished steps, and from those that run
        for longer than expected."""
        known, running = self.expected.seconds, self.running.values()
        ended = [(sum(one), len(one) * known[rule]) for rule, one in self.seconds.items() if rule in known]
        usual = _ratio(ended)
        so_far = [(now - started, known[rule]) for rule, _, started in running if rule in known]
        slower = _ratio([*ended, *((had, told) for had, told in so_far if had > usual * told)])
        means = {rule: sum(one) / len(one) for rule, one in self.seconds.items()}
        estimated = {rule: slower * seconds for rule, seconds in known.items()}
        return {rule: estimated.get(rule, means.get(rule, mean)) for rule in self.waiting}


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return how much longer steps took than they were expected to, from (taken, expected) seconds; 1 where nothing is known."""
    taken, told = (sum(each) for each in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    return taken / told if taken and told else 1.0


class LogHandler(LogHandlerBase):
    """Prints the steps of a run to stderr."""

    def __post_init__(self) -> None:
        self.steps = Run(time.monotonic())
        self.quiet = bool({Quietness.PROGRESS, Quietness.ALL} & {*(self.common_settings.quiet or ())})
        self.errors_known = False  # whether an error of the project was printed, which says why the run ends
        self.exit_codes: list[str] = []  # what Snakemake said of failed commands, until their logs are read
        self.ended = threading.Event()
        if not (self.quiet or self.common_settings.dryrun):
            threading.Thread(target=self._watch, daemon=True).start()
        self.by_event = {
            LogEvent.RUN_INFO: self._plan,
            LogEvent.JOB_INFO: self._start,
            LogEvent.JOB_FINISHED: self._finish,
            **({} if self.common_settings.verbose else {LogEvent.JOB_ERROR: self._fail}),
        }

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line of an event; of other messages those from warnings on."""
        event = getattr(record, "event", None)
        if event in self.by_event:
            self.by_event[event](record)
        elif record.msg == NOTHING_TO_BE_DONE_MSG:
            self._tell(record.msg)
        elif record.levelno >= logging.WARNING and (text := self.format(record)) not in ("", "None"):
            self._warn(text)

    def _warn(self, text: str) -> None:
        """Print a warning or an error; of one that holds errors of the project these alone, unless all is to be printed."""
        if self.common_settings.verbose:
            self._print(text)
        elif OF_A_COMMAND.match(text):
            self.exit_codes.append(text)
        elif errors := coded_errors(text):
            self._print_errors(errors)
        elif not (self.errors_known and text.startswith(OF_THE_END)):
            self._print(text)

    def _fail(self, record: logging.LogRecord) -> None:
        """Print the errors in the logs of a failed step; all that Snakemake says of it where they hold none."""
        if errors := errors_in_logs(record.log):
            self._print_errors(errors)
        else:
            self._print("\n".join((*self.exit_codes, self.format(record))))
        self.exit_codes.clear()

    def _print_errors(self, errors: Iterable[str]) -> None:
        self.errors_known = True
        self._print("\n".join(errors))

    def _watch(self) -> None:
        """Say from time to time which steps take longer than expected, until the run ends."""
        while not self.ended.wait(LOOK_EVERY):
            with self.lock:
                self._tell_overdue(time.monotonic())

    def _tell_overdue(self, now: float) -> None:
        for name, seconds, expected in self.steps.overdue_(now):
            left = self.steps.seconds_left(now)
            ending = f"; about {duration(left)} left" if left is not None else ""
            self._tell(f"still running: {name}, for {duration(seconds)} instead of {duration(expected)}{ending}")

    def close(self) -> None:
        """Print what was said of commands whose logs were never read."""
        self.ended.set()
        if self.exit_codes:
            self._print("\n".join(self.exit_codes))
            self.exit_codes.clear()
        super().close()

    def _plan(self, record: logging.LogRecord) -> None:
        before = self.steps.total
        self.steps.plan_(record.stats)
        self._expect()
        # A dry run says it twice.
        if self.steps.total not in (0, before):
            self._tell(f"{self.steps.total} steps")

    def _start(self, record: logging.LogRecord) -> None:
        name = " ".join(str(value) for value in dict(record.wildcards or {}).values())
        self.steps.start_(record.jobid, record.rule_name, name, time.monotonic())
        if self.common_settings.dryrun and record.rule_name != TARGET:
            self._tell(f"{record.rule_name.replace('_', ' ')} {name}")

    def _finish(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        step = self.steps.finish_(record.job_id, now)
        if step is None or step[0] == TARGET:
            return
        rule, name, seconds = step
        if rule == ESTIMATE:
            self._expect()
        left = self.steps.seconds_left(now)
        waiting = self.steps.total - self.steps.finished
        ending = f", about {duration(left)} left" if left is not None and waiting > 0 else ""
        count = f"{self.steps.finished:{len(str(self.steps.total))}}/{self.steps.total}"
        self._tell(f"{count} {rule.replace('_', ' ')} {name}: {duration(seconds)}{ending}")

    def _expect(self) -> None:
        """Take what the estimates of the models say, those of an earlier run too."""
        self.steps.expected = Expected.of(sorted(Path("results").glob("*/estimate.json")))

    def _tell(self, text: str) -> None:
        """Print how far the run is, unless it is to be quiet."""
        if not self.quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @property
    def writes_to_stream(self) -> bool:
        """Whether Snakemake's own printing to the terminal is replaced."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """Whether the plugin writes a file."""
        return False

    @property
    def has_filter(self) -> bool:
        """Whether the plugin filters events itself; it wants all."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Whether the plugin formats errors itself; Snakemake's formatter shows the failed step's log."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """Whether the plugin wants the graph of rules."""
        return False
