"""What stands in the folders of plans and baselines: the files, and a row of metrics from them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitplan.core.errors import Problem, UserError, user_error
from bitplan.core.files import read_json, read_table
from bitplan.report.metrics import METRICS, Metric

AGAIN = "Run snakemake again to create the results"
# The runtime whose figures stand beside the simulated ones.
RUNTIME = "gguf"
# The file of each result, in a baseline's folder and in a plan's.
BASELINE_RESULTS = {"file": "model.gguf", "file_scores": "perplexity.json", "speed": "speed.json"}
PLAN_RESULTS = {
    **{"bits": "bits.json", "plan": "plan.json", "scores": "perplexity.json"},
    **{key: f"{RUNTIME}/{name}" for key, name in BASELINE_RESULTS.items()},
}
# Beside a plan whose weights were rounded by a step of their own.
ROUNDING_TABLE = Path("rounding", "rounding.tsv")
OF_FILES = tuple(BASELINE_RESULTS)
# What a reader of the page may want to open, by pattern.
DOWNLOADS = ("config.json", "plan.json", "*/report.json", "model.*", "*/model.*", "*/tensor_types.txt")
BASELINE_METHOD = "llama.cpp"


@dataclass(frozen=True)
class Entry:
    """A plan or a baseline: its name, its folder, and whether a plan describes it."""

    name: str
    folder: Path
    is_plan: bool

    def files(self, with_files: bool = True) -> dict[str, Path]:
        """Return {result: path}; without `with_files` those of the simulated plan alone."""
        names = PLAN_RESULTS if self.is_plan else BASELINE_RESULTS
        return {key: self.folder / name for key, name in names.items() if with_files or key not in OF_FILES}

    def downloads(self) -> list[Path]:
        """Return the files and checkpoints that the page links to: what there is of the plan, and of it in each runtime."""
        paths = (path for pattern in DOWNLOADS for path in sorted(self.folder.glob(pattern)))
        return [path for path in paths if not path.name.endswith(".meta.json")]


@dataclass(frozen=True)
class ReferenceSpeed:
    """Tokens/s of the reference file in its own session, and whether they were stable."""

    tokens_per_second: float
    stable: bool


def reference_speed(folder: Path, name: str) -> ReferenceSpeed:
    """Return the speed of the reference file in its own session. Raises `UserError` when it has none."""
    try:
        speed = read_json(folder / "speed.json")["models"][name]["generation_tokens_per_second"]
        return ReferenceSpeed(float(speed["median"]), speed["stable"])
    except (KeyError, TypeError, ValueError) as error:
        raise user_error(
            "REPORT-NO-FIGURE", folder / "speed.json", f"lacks the speed of {name}: {error}", AGAIN
        ) from None


@dataclass(frozen=True)
class Reader:
    """Reads the results of one entry; `parameters` are the model's, `reference` is None for plans without files."""

    entry: Entry
    parameters: int
    reference: ReferenceSpeed | None

    def plan(self, path: Path) -> dict[str, Any]:
        """Return the method of a plan.json, the KL that its search expected, and what the search cost."""
        plan = read_json(path)
        summary = plan.get("summary", {})
        cost = {"evaluations": None, **summary.get("cost", {})}
        return {"method": summary.get("method"), "predicted": summary.get("kld_predicted"), "cost": cost}

    def file(self, path: Path) -> dict[str, Any]:
        """Return the bytes of a file, and 8 x bytes / parameters."""
        size = path.stat().st_size
        return {"bytes": size, "avg_bits": 8 * size / self.parameters}

    def speed(self, path: Path) -> dict[str, Any]:
        """Return the speeds of a file: its ratio was paired with the reference in one session, so tokens/s are that ratio times
        the reference's own figure, and the rows of different sessions can be compared."""
        ratio = read_json(path)["models"][self.entry.name]["ratio"]
        speed = None if ratio["median"] is None else ratio["median"] * self.reference.tokens_per_second
        return {"tokens_per_second": speed, "ratio": ratio, "stable": ratio["stable"] and self.reference.stable}

    def results(self) -> dict[str, Any]:
        """Return {result: content} of the entry's files."""
        of: dict[str, Callable[[Path], Any]] = {"plan": self.plan, "file": self.file, "speed": self.speed}
        files = self.entry.files(self.reference is not None)
        return {key: of.get(key, read_json)(path) for key, path in files.items()}


def check_results(entries: Iterable[Entry], with_files: bool = True) -> None:
    """Raise `UserError` with every result that an entry's row is made of and that is not there; GGUF files only `with_files`."""
    paths = [path for entry in entries for path in entry.files(with_files).values()]
    problems = [Problem("REPORT-NO-RESULT", str(path), "does not exist", AGAIN) for path in paths if not path.is_file()]
    if problems:
        raise UserError(problems)


def value_of(results: Mapping[str, Any], metric: Metric) -> Any:
    """Return a metric's value; None where the entry has no such result. Raises KeyError where the result lacks it."""
    first, *keys = metric.source.split(".")
    value = results.get(first)
    for key in keys:
        value = None if value is None else value[key]
    return value


def rounding_in(folder: Path, rounding: str | None) -> dict[str, Any]:
    """Return how the weights of a plan's folder were rounded, and of how many layers to nearest instead, and on fewer tokens than columns."""
    if rounding is None:
        return {"rounding": "nearest", "rounded_to_nearest": None, "few_tokens": None}
    layers = read_table(folder / ROUNDING_TABLE, ("why", "tokens", "columns"))
    few = sum(int(layer["tokens"]) < int(layer["columns"]) for layer in layers)
    return {"rounding": rounding, "rounded_to_nearest": sum(bool(layer["why"]) for layer in layers), "few_tokens": few}


def row_of(entry: Entry, parameters: int, reference: ReferenceSpeed | None) -> dict[str, Any]:
    """Return the entry's name, method and metrics; without a reference's speed the simulated plan's alone.

    Raises `UserError` when a result lacks one.
    """
    try:
        results = Reader(entry, parameters, reference).results()
        method = results["plan"]["method"] if entry.is_plan else BASELINE_METHOD
        rounding = rounding_in(entry.folder, results["scores"].get("rounding")) if entry.is_plan else {}
        return {
            "name": entry.name,
            "method": method,
            **rounding,
            **{each.key: value_of(results, each) for each in METRICS},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise user_error("REPORT-NO-FIGURE", entry.folder, f"has an incomplete result: {error}", AGAIN) from None
