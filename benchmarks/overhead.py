"""What Snakemake itself takes: dry runs of the demo and of 50 models x 20 plans, and a run in which nothing is left to do.

    python benchmarks/overhead.py [--rounds 3] [--models 50] [--plans 20]

Prints the smallest of the rounds: seconds of wall clock, and of processor time, which other work on the machine changes less.
Outputs are stubs that Snakemake takes for finished.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from tests.workflow.conftest import copy_workflow, finish  # noqa: E402

LIMITS = {"dry run, demo": 2.0, "dry run, many": 10.0, "nothing to do, demo": 3.0}


def many_settings(models: int, plans: int) -> str:
    """Return a config.yaml with so many models, all of them the demo's files, and adaptive plans; JSON is YAML."""
    model = {"path": "demo/model", "calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}
    plan = {"method": "adaptive", "target_avg_bits": 8.0}
    named = {f"plan-{i}": {**plan, "ppl_threshold": round(0.05 + 0.01 * i, 2)} for i in range(plans)}
    return json.dumps({"models": {f"model-{i}": model for i in range(models)}, "plans": named})


def seconds(folder: Path, rounds: int, said: str, *arguments: str) -> tuple[float, float]:
    """Return the smallest wall clock and processor time of `snakemake` with some arguments, whose output holds `said`."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        with tempfile.TemporaryFile("w+") as output:
            child = subprocess.Popen(["snakemake", *arguments], cwd=folder, stdout=output, stderr=output)
            _, status, used = os.wait4(child.pid, 0)
            wall = time.perf_counter() - started
            output.seek(0)
            if status or said not in output.read():
                raise SystemExit(f"snakemake {' '.join(arguments)} failed, or did not say {said!r}")
        taken.append((wall, used.ru_utime + used.ru_stime))
    return min(wall for wall, _ in taken), min(cpu for _, cpu in taken)


def figures(place: Path, args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Return (wall, processor) seconds by name."""
    demo, many = copy_workflow(place / "demo"), copy_workflow(place / "many")
    (many / "config.yaml").write_text(many_settings(args.models, args.plans))
    found = {
        "dry run, demo": seconds(demo, args.rounds, "plan_perplexity", "--dry-run"),
        "dry run, many": seconds(many, args.rounds, "plan_perplexity", "--dry-run"),
        "dry run, many, --quiet": seconds(many, args.rounds, "", "--dry-run", "--quiet"),
    }
    finish(demo)
    return {**found, "nothing to do, demo": seconds(demo, args.rounds, "Nothing to be done", "--cores", "1")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--plans", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for name, (wall, cpu) in figures(Path(place), args).items():
            limit = f"limit {LIMITS[name]:g} s" if name in LIMITS else ""
            print(f"{name:<24}{wall:8.2f} s wall{cpu:8.2f} s processor   {limit}", flush=True)


if __name__ == "__main__":
    main()
