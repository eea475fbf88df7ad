"""An estimate beside what the steps took: Snakemake's benchmark files of a finished run, and what the commands say of themselves.

Snakemake looks at a job twice a second for 15 seconds and every 30 seconds afterwards, so it misses up to half a minute at the end of a long one.
A command that writes `.meta.json` says what it had used by then. Both are too low, so the larger one is taken.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitplan.core.files import read_json
from bitplan.core.tables import Column, text_table
from bitplan.report.benchmarks import read_benchmark

COLUMNS = (
    Column("step", "step"),
    Column("jobs", "jobs"),
    Column("estimated", "estimated s", "{:.1f}"),
    Column("most", "at most s", "{:.1f}"),
    Column("measured", "measured s", "{:.1f}"),
    Column("factor", "estimated / measured", "{:.2f}"),
    Column("memory", "estimated GB", "{:.2f}"),
    Column("resident", "measured GB", "{:.2f}"),
)
# The rule behind the end of a benchmark file's name; before it stands a plan, or a plan and a runtime.
OF_PLANS = {"bits": "bits", "rounding": "rounded_plan", "tasks": "plan_tasks", "perplexity": "plan_perplexity"}
IN_RUNTIMES = {"perplexity": "plan_runtime_perplexity", "speed": "plan_speed"}


def rule_of(folder: Path, file: str) -> str | None:
    """Return the rule behind a benchmark file of a model's results; None for one whose plan or baseline is no longer there."""
    name = file.removesuffix(".tsv")
    if re.fullmatch(r"sensitivity\.\d+-of-\d+", name):
        return "sensitivity_shard"
    of, dot, end = name.rpartition(".")
    if not dot:
        return {"tasks": "model_tasks"}.get(name, name)
    if (folder / "baselines" / of).is_dir():
        return f"baseline_{end}"
    plan = folder / "plans" / of
    if not plan.is_dir():
        in_runtime = plan.with_name(of.rpartition(".")[0]) if "." in of else plan
        return IN_RUNTIMES.get(end) if in_runtime.is_dir() else None
    return f"{_method_of(plan / 'plan.json')}_plan" if end == "search" else OF_PLANS.get(end, f"plan_{end}")


def _method_of(plan: Path) -> str:
    return str(read_json(plan).get("summary", {}).get("method", "")) if plan.is_file() else ""


def benchmark_of(output: Path) -> str:
    """Return the name of the benchmark file, without its end, of the step that wrote an output, a path below a model's results."""
    if len(output.parts) == 1:
        return {"base.gguf": "base_gguf"}.get(output.name, output.stem)
    _, of, *inside = output.parts
    if inside[-1] in ("config.json", "plan.json"):
        return f"{of}.{'search' if len(inside) == 1 else inside[0]}"
    if inside[-1].startswith("model"):
        return f"{of}.{inside[0] if len(inside) > 1 else 'gguf'}"
    return ".".join((of, *inside)).removesuffix(".json")


def recorded_of(folder: Path) -> dict[str, tuple[float, float]]:
    """Return {benchmark file's name: processor seconds, peak in bytes} of the steps whose commands have said it beside their outputs."""
    found = {}
    for path in sorted(folder.rglob("*.meta.json")):
        content = read_json(path)
        if "processor_seconds" in content:
            name = benchmark_of(path.relative_to(folder).with_name(path.name.removesuffix(".meta.json")))
            found[name] = (float(content["processor_seconds"]), float(content["peak_memory_bytes"]))
    return found


def measured_of(folder: Path) -> dict[str, dict[str, float]]:
    """Return {rule: {jobs, seconds of the processor in all, largest memory in bytes}} of a model's folder of results."""
    found: dict[str, dict[str, float]] = {}
    recorded = recorded_of(folder)
    for path in sorted((folder / "benchmarks").glob("*.tsv")):
        rule, measured = rule_of(folder, path.name), read_benchmark(path)
        seconds, peak = recorded.get(path.stem, (0.0, 0.0))
        if rule is None or measured is None or (measured.processor_seconds is None and not seconds):
            continue
        one = found.setdefault(rule, {"jobs": 0, "seconds": 0.0, "memory": 0.0})
        one["jobs"] += 1
        one["seconds"] += max(seconds, measured.processor_seconds or 0.0)
        one["memory"] = max(one["memory"], peak, measured.peak_bytes or 0.0)
    return found


def compared(content: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each rule that was estimated and measured: processor seconds of one job, their ratio, memory in GB.

    The ratio is 1 where a job took between what it takes at least and with what may come besides.
    """
    measured = measured_of(folder)
    for row in content["steps"]:
        if other := measured.get(row["rule"]):
            jobs, seconds = row["jobs"], other["seconds"] / other["jobs"]
            least, most = row["seconds"] / jobs, (row["seconds"] + row.get("perhaps", 0.0)) / jobs
            yield {
                "step": row["rule"].replace("_", " "),
                "jobs": int(other["jobs"]),
                "estimated": least,
                "most": most if most > least else None,
                "measured": seconds,
                "factor": min(most, max(least, seconds)) / seconds if seconds else None,
                "memory": row["memory"] / 1e9,
                "resident": other["memory"] / 1e9,
            }


def comparison_text(content: Mapping[str, Any], folder: Path) -> str:
    """Return a table of both, and the ratio over all steps that were measured."""
    rows = list(compared(content, folder))
    if not rows:
        return "no step of this estimate has been measured yet"
    both = [sum(row[key] * row["jobs"] for row in rows) for key in ("estimated", "measured")]
    within = sum(1 for row in rows if row["factor"] and 1 / 1.5 <= row["factor"] <= 1.5)
    last = f"all: {both[0]:.0f} s estimated, {both[1]:.0f} s measured, factor {both[0] / max(both[1], 1e-9):.2f}; {within} of {len(rows)} steps within 1.5"
    return f"{text_table(rows, COLUMNS)}\n\n{last}"
