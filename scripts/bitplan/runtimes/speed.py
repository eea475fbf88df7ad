"""Speed of GGUF files in llama.cpp: every run in a process of its own, models interleaved, so that drift hits all alike."""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.files import check_gguf
from bitplan.core.tables import Column, text_table
from bitplan.evaluate.timing import Run, SpeedSettings
from bitplan.runtimes.registry import runtime_of
from bitplan.runtimes.transformers.original import run_original

MEASURED = ("load_seconds", "prompt_tokens_per_second", "generation_tokens_per_second")


def _run_any(path: Path, settings: SpeedSettings) -> Run:
    """Run a file in its runtime, or a checkpoint's folder in transformers."""
    return run_original(path, settings) if path.is_dir() else runtime_of(path).time(path, settings)


def _size_of(path: Path) -> int:
    """Return the bytes of a file, or of the weights in a checkpoint's folder."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


# Each run is a process of its own, forked from one that has imported llama.cpp's library and loaded no model: importing it
# again takes longer than a small file's run. Only Linux forks libraries safely.
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
IMPORTED = ["__main__", "bitplan.runtimes.gguf.timing", "llama_cpp"]


def _processes() -> BaseContext:
    """Return what starts a process for each run."""
    context = multiprocessing.get_context(METHOD)
    if METHOD == "forkserver":
        context.set_forkserver_preload(IMPORTED)
    return context


def _in_process(path: Path, settings: SpeedSettings) -> Run:
    with ProcessPoolExecutor(1, mp_context=_processes()) as pool:
        try:
            return pool.submit(_run_any, path, settings).result()
        except BrokenProcessPool:
            raise user_error(
                "SPEED-KILLED", path, "could not be timed: the process was killed", "Give the job more memory"
            ) from None


def rounds(models: Mapping[str, Path], settings: SpeedSettings) -> Iterator[dict[str, Run]]:
    """Yield a run of every model, round by round, until the speeds are stable or the budget is used; those to warm up come first.

    Of the budget, the first `repeats` counted rounds are always run; no other begins after `max_seconds`.
    """
    done: list[dict[str, Run]] = []
    started = time.monotonic()
    while len(done) < settings.warmup + settings.budget and not _are_stable(done[settings.warmup :], settings):
        if len(done) >= settings.warmup + settings.repeats and time.monotonic() - started > settings.max_seconds:
            return
        done.append({name: _in_process(path, settings) for name, path in models.items()})
        yield done[-1]


def _last(counted: Sequence[Mapping[str, Run]], settings: SpeedSettings) -> Sequence[Mapping[str, Run]]:
    return counted[-settings.repeats :]


def _are_stable(counted: Sequence[Mapping[str, Run]], settings: SpeedSettings) -> bool:
    """Return whether the generation speeds of every model, and their ratios, are stable in the last rounds."""
    last = _last(counted, settings)
    if len(last) < settings.repeats:
        return False
    reference = next(iter(last[0]))
    speeds = [[each[name].generation_tokens_per_second for each in last] for name in last[0]]
    series = (*speeds, *(_ratios(last, name, reference) for name in last[0]))
    return all(spread_of(values, settings.max_spread)["stable"] for values in series)


def _ratios(counted: Sequence[Mapping[str, Run]], name: str, reference: str) -> list[float]:
    """Return the generation speed over the reference's in the same round; rounds in which the reference has none are left out."""
    pairs = [
        (each[name].generation_tokens_per_second, each[reference].generation_tokens_per_second) for each in counted
    ]
    return [ours / theirs for ours, theirs in pairs if theirs]


def spread_of(values: Sequence[float], most: float) -> dict[str, Any]:
    """Return median, min and max of some values, and whether max is at most `most` times min."""
    if not values:
        return {"median": None, "min": None, "max": None, "stable": True}
    low, high = min(values), max(values)
    return {"median": statistics.median(values), "min": low, "max": high, "stable": high <= most * low}


def _figures(name: str, path: Path, counted: Sequence[Mapping[str, Run]], settings: SpeedSettings) -> dict[str, Any]:
    runs, most = [each[name] for each in counted], settings.max_spread
    return {
        "file_bytes": _size_of(path),
        **{key: spread_of([getattr(run, key) for run in runs], most) for key in MEASURED},
        "ratio": spread_of(_ratios(counted, name, next(iter(counted[0]))), most),
        "peak_memory_bytes": max(run.peak_memory_bytes for run in runs),
        "answers": list(runs[-1].answers),
    }


def summarize(
    models: Mapping[str, Path], measured: Sequence[Mapping[str, Run]], settings: SpeedSettings
) -> dict[str, Any]:
    """Return the content of speed.json: medians over the last rounds where these are stable, over all counted ones where not.

    `ratio` is the generation speed over the first model's, paired round by round. Each figure says whether it is stable.
    """
    counted = measured[settings.warmup :]
    stable = _are_stable(counted, settings)
    used = _last(counted, settings) if stable else counted
    return {
        "reference": next(iter(models)),
        "settings": asdict(settings),
        "rounds": {"run": len(counted), "used": len(used), "stable": stable},
        "models": {name: _figures(name, path, used, settings) for name, path in models.items()},
    }


def parse_models(pairs: Sequence[str]) -> dict[str, Path]:
    """Return {name: path} of NAME=FILE words. Raises `UserError` for a word without name, and for what is no GGUF file."""
    models = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not name or not path:
            raise user_error(
                "SPEED-NOT-NAME-FILE", "--models", f"{pair!r} is not NAME=FILE", "Write e.g. plan=results/model.gguf"
            )
        if not os.path.isfile(path):
            raise user_error("INPUT-MISSING", path, "does not exist", "Create it with scripts/export_gguf.py")
        if models.get(name, Path(path)) != Path(path):
            raise user_error(
                "SPEED-NAME-TWICE", "--models", f"gives two files the name {name!r}", "Give each file its own name"
            )
        models[name] = Path(path)
    for path in models.values():
        if runtime_of(path).name == "gguf":
            check_gguf(path)
    return models


# The figures of speed.json that are medians of rounds: key, heading, and how one is shown.
MEDIANS = (
    Column("load_seconds", "load s", "{:.3f}"),
    Column("prompt_tokens_per_second", "prompt tok/s", "{:.1f}"),
    Column("generation_tokens_per_second", "tok/s", "{:.1f}"),
    Column("ratio", "ratio", "{:.2f}x"),
)
TIMED = (
    Column("model", "model"),
    Column("megabytes", "size MB", "{:.2f}"),
    *MEDIANS,
    Column("peak_megabytes", "memory MB", "{:.1f}"),
)


def _median_text(figure: Mapping[str, Any], layout: str) -> str | None:
    """Return a median as text, or "unstable" and its range; None for none."""
    if figure["median"] is None:
        return None
    if figure["stable"]:
        return layout.format(figure["median"])
    return f"unstable {layout.format(figure['min'])} - {layout.format(figure['max'])}"


def timed_row(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `TIMED` shows of a model of speed.json: size, times, speeds, memory."""
    sizes = {"megabytes": row["file_bytes"] / 1e6, "peak_megabytes": row["peak_memory_bytes"] / 1e6}
    return {"model": name, **sizes, **{each.key: _median_text(row[each.key], each.format) for each in MEDIANS}}


def print_rounds(result: Mapping[str, Any]) -> None:
    """Print over how many rounds the figures are, and what to do about unstable ones."""
    held, most = result["rounds"], result["settings"]["max_spread"]
    print(f"medians over {held['used']} rounds; speeds vary by a factor of at most {most:g}" if held["stable"] else
          f"unstable: speeds vary by more than a factor of {most:g} over {held['used']} rounds; "
          "stop what else runs on this machine, or raise --max_repeats and --max_seconds")  # fmt: skip


def print_table(result: Mapping[str, Any]) -> None:
    """Print size, load time, speeds, the ratio to the first model and memory, one line a model."""
    print(text_table([timed_row(name, row) for name, row in result["models"].items()], TIMED))
    print_rounds(result)
