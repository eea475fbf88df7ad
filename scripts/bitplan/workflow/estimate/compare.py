"""An estimate beside what the steps took: Snakemake's benchmark files of a finished run."""

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


def measured_of(folder: Path) -> dict[str, dict[str, float]]:
    """Return {rule: {jobs, seconds of the processor in all, largest memory in bytes}} of a model's folder of results."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "benchmarks").glob("*.tsv")):
        rule, measured = rule_of(folder, path.name), read_benchmark(path)
        if rule is None or measured is None or measured.processor_seconds is None:
            continue
        one = found.setdefault(rule, {"jobs": 0, "seconds": 0.0, "memory": 0.0})
        one["jobs"] += 1
        one["seconds"] += measured.processor_seconds
        one["memory"] = max(one["memory"], measured.peak_bytes or 0.0)
    return found


def compared(content: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each rule that was estimated and measured: processor seconds of one job, their ratio, memory in GB."""
    measured = measured_of(folder)
    for row in content["steps"]:
        if other := measured.get(row["rule"]):
            estimated, seconds = row["seconds"] / row["jobs"], other["seconds"] / other["jobs"]
            yield {
                "step": row["rule"].replace("_", " "),
                "jobs": int(other["jobs"]),
                "estimated": estimated,
                "measured": seconds,
                "factor": estimated / seconds if seconds else None,
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
