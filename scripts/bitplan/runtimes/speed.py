"""Speed of GGUF files in llama.cpp: every run in a process of its own, models interleaved, so that drift hits all alike."""

import multiprocessing
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.files import check_gguf
from bitplan.evaluate.timing import PROMPT_TOKENS, Run, SpeedSettings, peak_memory_bytes
from bitplan.runtimes.transformers.original import run_original

MEASURED = ("load_seconds", "prompt_tokens_per_second", "generation_tokens_per_second")


def run_once(path: Path, settings: SpeedSettings) -> Run:
    """Load a file, time a prompt of 256 tokens and the generation after each prompt, and return what was measured."""
    from bitplan.runtimes.gguf.llama_runtime import opened

    with opened(path, PROMPT_TOKENS + settings.max_tokens, settings.threads) as runtime:
        prompts = [runtime.tokenize(prompt) for prompt in settings.prompts]
        # A model with learned positions has none past those it was trained on.
        room = min(runtime.context, runtime.trained)
        long = list(islice(cycle(chain.from_iterable(prompts)), min(PROMPT_TOKENS, room - 1)))
        _, prompt_seconds, _ = runtime.generate(long, 1)
        counts = [min(settings.max_tokens, room - len(prompt)) for prompt in prompts]
        made = [runtime.generate(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        generated, seconds = sum(len(tokens) - 1 for tokens, _, _ in made), sum(after for _, _, after in made)
        answers = tuple(runtime.text_of(tokens) for tokens, _, _ in made)
        speed = generated / seconds if generated else 0.0
        return Run(runtime.load_seconds, len(long) / prompt_seconds, speed, peak_memory_bytes(), answers)


def _run_any(path: Path, settings: SpeedSettings) -> Run:
    """Run a GGUF file in llama.cpp, or a checkpoint's folder in transformers."""
    if not path.is_dir():
        return run_once(path, settings)
    return run_original(path, settings)


def _size_of(path: Path) -> int:
    """Return the bytes of a file, or of the weights in a checkpoint's folder."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


def _in_process(path: Path, settings: SpeedSettings) -> Run:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_run_any, path, settings).result()
        except BrokenProcessPool:
            raise user_error(path, "was being timed when its process was killed", "Give the step more memory") from None


def rounds(models: Mapping[str, Path], settings: SpeedSettings) -> Iterator[dict[str, Run]]:
    """Yield a run of every model, round by round; the rounds to warm up come first."""
    for _ in range(settings.warmup + settings.repeats):
        yield {name: _in_process(path, settings) for name, path in models.items()}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "min": None, "max": None}
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _figures(name: str, path: Path, counted: Sequence[Mapping[str, Run]], reference: str) -> dict[str, Any]:
    runs = [each[name] for each in counted]
    measured = {key: _spread([getattr(run, key) for run in runs]) for key in MEASURED}
    speeds = [
        (each[name].generation_tokens_per_second, each[reference].generation_tokens_per_second) for each in counted
    ]
    ratios = [ours / theirs for ours, theirs in speeds if theirs]
    return {
        "file_bytes": _size_of(path),
        **measured,
        "ratio": _spread(ratios),
        "peak_memory_bytes": max(run.peak_memory_bytes for run in runs),
        "answers": list(runs[-1].answers),
    }


def summarize(
    models: Mapping[str, Path], measured: Sequence[Mapping[str, Run]], settings: SpeedSettings
) -> dict[str, Any]:
    """Return the content of speed.json. `ratio` is the generation speed over the first model's, paired round by round."""
    reference, counted = next(iter(models)), measured[settings.warmup :]
    return {
        "reference": reference,
        "settings": asdict(settings),
        "models": {name: _figures(name, path, counted, reference) for name, path in models.items()},
    }


def parse_models(pairs: Sequence[str]) -> dict[str, Path]:
    """Return {name: path} of NAME=FILE words. Raises `UserError` for a word without name, and for what is no GGUF file."""
    models = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not name or not path:
            raise user_error("--models", f"{pair!r} is not NAME=FILE", "Write it as plan=results/model.gguf")
        if not os.path.isfile(path):
            raise user_error(path, "does not exist", "Make it with scripts/export_gguf.py")
        if models.get(name, Path(path)) != Path(path):
            raise user_error("--models", f"names two files {name!r}", "Give each file a name of its own")
        models[name] = Path(path)
    for path in models.values():
        check_gguf(path)
    return models


def print_table(result: Mapping[str, Any]) -> None:
    """Print size, load time, speeds and the ratio to the first model, one line a model."""
    print(
        f"{'model':<26} {'size MB':>8} {'load s':>7} {'prompt tok/s':>13} {'tok/s':>9} {'min - max':>17} {'ratio':>7} {'memory MB':>10}"
    )
    for name, row in result["models"].items():
        speed, ratio = row["generation_tokens_per_second"], row["ratio"]["median"]
        spread = f"{speed['min']:.1f} - {speed['max']:.1f}"
        times = "-" if ratio is None else f"{ratio:.2f}x"
        print(
            f"{name:<26} {row['file_bytes'] / 1e6:>8.2f} {row['load_seconds']['median']:>7.3f} "
            f"{row['prompt_tokens_per_second']['median']:>13.1f} {speed['median']:>9.1f} {spread:>17} {times:>7} "
            f"{row['peak_memory_bytes'] / 1e6:>10.1f}"
        )
