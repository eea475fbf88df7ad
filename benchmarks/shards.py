"""A shape's workflow in shards on a private SLURM cluster, and the same without one: are its files the same bytes?

    python benchmarks/shards.py [--shape 0.5b] [--blocks 24] [--shards 4] [--no-correct] [--folder FOLDER]

Weights are random (benchmarks/size.py). The cluster is tests/slurm/cluster.py: three emulated nodes on this machine and three jobs at once, for which SLURM and munge have to be
installed (`make test-slurm` does it). Prints the seconds of both runs, how many files are equal, and each that differs; ends with 1 where one does.
Files that are measured anew in each run are left out (speeds, estimates, Snakemake's benchmarks, records of when a file was made).
With --folder the model and a finished run are kept, and used again.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ["BITPLAN_TESTS_COLD"] = "1"  # steps are processes of their own, as a user's are

import size  # noqa: E402

from tests.slurm.cluster import Cluster  # noqa: E402
from tests.slurm.runs import ClusterRun, make_folder, run_locally  # noqa: E402
from tests.slurm.test_demo import results_of  # noqa: E402

TARGETS = ("gguf", "perplexity", "cards")
WINDOWS = {"length": 256, "sequences": 4}


def settings_of(model: Path, shards: int, correct: bool) -> dict:
    """Return mine.yaml: two optimal plans, one of them rounded with feedback, of prices that are made in shards."""
    texts = {"calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}
    return {
        "models": {"shape": {"path": str(model), **texts, "runtimes": ["gguf"]}},
        "plans": {
            "as-q4": {"method": "optimal", "same_size_as": "q4_k_m", "rounding": "feedback", "correct": correct},
            "six": {"method": "optimal", "target_avg_bits": 6.0, "correct": correct},
        },
        "baselines": ["q4_k_m"],
        "calibration": WINDOWS,
        "validation": WINDOWS,
        "evaluation": WINDOWS,
        "sensitivity": {"draws": 2, "shards": shards},
    }


def seconds_on_cluster(folder: Path, place: Path) -> float:
    """Return the seconds of the workflow as jobs of a private cluster below `place`. Ends the program where it fails."""
    cluster = Cluster(place)
    run = ClusterRun(cluster, folder)
    try:
        cluster.start()
        started = time.perf_counter()
        run.start(*TARGETS)
        if run.process.wait():
            raise SystemExit(run.said[-3000:])
        return time.perf_counter() - started
    finally:
        run.stop()
        cluster.stop()


def seconds_alone(folder: Path) -> float:
    """Return the seconds of the workflow on this machine."""
    started = time.perf_counter()
    run_locally(folder, *TARGETS)
    return time.perf_counter() - started


def folder_of(place: Path, settings: dict) -> Path:
    """Return a folder in which the workflow runs, made or kept."""
    return place if place.exists() else make_folder(place, settings)


def report(alone: Path, shared: Path) -> int:
    """Print which files of two runs differ; return how many, those that only one has among them."""
    ours, wanted = results_of(shared), results_of(alone)
    differ = sorted(name for name in ours.keys() | wanted.keys() if ours.get(name) != wanted.get(name))
    print(f"{len(wanted)} files, {len(wanted) - len(differ)} equal", *differ, sep="\n", flush=True)
    return len(differ)


def run(place: Path, args: argparse.Namespace) -> int:
    """Make the model and run the workflow in both ways; return how many files differ."""
    model = place / f"model-{args.shape}"
    size.make_model(model, args.shape, args.blocks)
    alone = folder_of(place / "alone", settings_of(model, 1, args.correct))
    print(f"alone: {seconds_alone(alone):.0f} s", flush=True)
    shared = folder_of(place / "cluster", settings_of(model, args.shards, args.correct))
    with tempfile.TemporaryDirectory(prefix="bitplan-slurm-") as short:
        print(
            f"in {args.shards} shards on the cluster: {seconds_on_cluster(shared, Path(short)):.0f} s",
            flush=True,
        )
    return report(alone, shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=size.SHAPES, default="0.5b")
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--shards", type=int, default=4)
    told = "plans without corrections, which take half of the time"
    parser.add_argument("--no-correct", dest="correct", action="store_false", help=told)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        raise SystemExit(run(args.folder.resolve(), args) > 0)
    with tempfile.TemporaryDirectory() as place:
        raise SystemExit(run(Path(place), args) > 0)


if __name__ == "__main__":
    main()
