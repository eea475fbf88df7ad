"""The demo on one core and on several: whole runs of the workflow in fresh copies, in turn.

    python benchmarks/parallel.py [--cores 1 2] [--rounds 2] [--target all] [--settings mine.yaml]

Prints the seconds of every run and the ratio of the medians to the first. Run it on a machine that does nothing else.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "config.yaml", "rules", "scripts", "profiles", "envs", "docs", "demo")


def fresh_copy(folder: Path) -> Path:
    """Copy what a run needs, and no result."""
    folder.mkdir()
    for part in PARTS:
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / part)
    return folder


def seconds(folder: Path, cores: int, target: str, settings: list[str]) -> float:
    """Return the seconds of a run of a target in a copy; ends the program when it fails."""
    started = time.perf_counter()
    command = ["snakemake", "--cores", str(cores), "--quiet", "all", *settings, "--", target]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(made.stdout + made.stderr)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--target", default="all")
    parser.add_argument("--settings", type=Path, help="settings in the place of config.yaml")
    args = parser.parse_args()
    settings = ["--configfile", str(args.settings.resolve()), "--replace-workflow-config"] if args.settings else []
    taken: dict[int, list[float]] = {cores: [] for cores in args.cores}
    for _ in range(args.rounds):
        for cores in args.cores:
            with tempfile.TemporaryDirectory() as place:
                taken[cores].append(seconds(fresh_copy(Path(place) / "run"), cores, args.target, settings))
            print(f"--cores {cores}: {taken[cores][-1]:.1f} s", flush=True)
    first = statistics.median(taken[args.cores[0]])
    for cores, runs in taken.items():
        middle = statistics.median(runs)
        print(f"--cores {cores}: median {middle:.1f} s, {first / middle:.2f} times as fast as --cores {args.cores[0]}")


if __name__ == "__main__":
    main()
