"""The optimal allocation: answers known for Qwen3-4B, HiGHS beside it, and a table as large as a mixture of experts of 74 B weights.

    python benchmarks/allocation.py [--table sensitivity.csv] [--layers 98562]

The known answers are those of a Lagrangian with greedy filling, beside the table in ../shared/assets; without it that part is left out.
The large table is random: attention, experts in groups of alike sizes, embeddings; 12 formats; written as CSV and given to the command.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np  # noqa: E402

from bitplan.search.allocation.problem import (  # noqa: E402
    AVG_BITS,
    KLD,
    Allocation,
    AllocationProblem,
    Target,
    allocate,
    allocation_problem,
    reach,
)
from bitplan.sensitivity.table import SensitivityTable, read_sensitivity_table  # noqa: E402

TABLE = ROOT.parent / "shared" / "assets" / "qwen3-4b-kld" / "sensitivity.csv"
KNOWN = {3.0: 0.3233584, 3.5: 0.1336840, 4.0: 0.0675885, 4.5: 0.0327124, 5.0: 0.0165255, 6.0: 0.0055036}
BITS = np.array([2.0625, 2.5625, 2.625, 3.4375, 3.5, 4.25, 4.5, 5.5, 6.25, 6.5625, 8.5, 16])
ROUNDS = 5


def timed(problem: AllocationProblem, target: Target) -> tuple[Allocation, float]:
    """Return the allocation for a target and the seconds that it took."""
    started = time.perf_counter()
    (made,) = allocate(problem, [target])
    return made, time.perf_counter() - started


def highs(problem: AllocationProblem, bits: float) -> tuple[float, float]:
    """Return the sum of damages that HiGHS finds for average bits, and the seconds that it took."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    damage, size = problem.choices.damage, problem.choices.size
    layers, options = damage.shape
    one = csr_array((np.ones(damage.size), (np.repeat(np.arange(layers), options), np.arange(damage.size))))
    share = LinearConstraint(size.ravel()[None] / (bits * problem.params / 8), -np.inf, 1)
    started = time.perf_counter()
    found = milp(
        damage.ravel(),
        integrality=np.ones(damage.size),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one, 1, 1), share],
        options={"mip_rel_gap": 1e-9, "time_limit": 60},
    )
    return float(found.fun), time.perf_counter() - started


def known_answers(path: Path) -> None:
    """Print for each average of bits the known answer, ours with its bound and time, and that of HiGHS."""
    problem = allocation_problem(read_sensitivity_table(path))
    print("bits  known      sum of kld    gap      seconds  HiGHS         seconds")
    for bits, known in {**KNOWN, 7.0: None, 8.0: None}.items():
        made, seconds = timed(problem, Target(AVG_BITS, bits))
        other, others = highs(problem, bits)
        told = f"{known:.7f}" if known else "-"
        print(
            f"{bits:<5} {told:<10} {made.kld:<13.9f} {made.gap:<8.1e} {seconds:<8.4f} {other:<13.9f} {others:.2f}",
            flush=True,
        )
    print(
        f"command, six targets, start-up included: {command(path, list(KNOWN)):.2f} s (best of {ROUNDS})\n", flush=True
    )


def command(path: Path, bits: list[float], rounds: int = ROUNDS) -> float:
    """Return the seconds of scripts/allocate_bits.py for some averages of bits, the least of some rounds."""
    with tempfile.TemporaryDirectory() as folder:
        line = [
            sys.executable,
            ROOT / "scripts/allocate_bits.py",
            "--sensitivity",
            path,
            "--output",
            f"{folder}/front.json",
        ]
        taken = []
        for _ in range(rounds):
            started = time.perf_counter()
            subprocess.run([*map(str, line), "--target-avg-bits", *map(str, bits)], check=True, capture_output=True)
            taken.append(time.perf_counter() - started)
    return min(taken)


def experts_table(layers: int, seed: int = 0) -> SensitivityTable:
    """Return a random table: 64 blocks of attention, two embeddings, and experts as the layers that are left."""
    rng = np.random.default_rng(seed)
    attention = np.tile([4096 * 4096, 4096 * 512, 4096 * 512, 4096 * 4096], 64)
    experts = np.full(max(layers - len(attention) - 2, 0), 700 * 1024)
    params = np.concatenate([attention, experts, [150_000 * 4096] * 2]).astype(np.float64)
    scale = rng.lognormal(-6, 1.2, len(params)) * (params / params.max()) ** 0.7
    scale[len(attention) : -2] *= 0.01
    damage = scale[:, None] * 4.0**-BITS * rng.lognormal(0, 0.1, (len(params), len(BITS)))
    names = tuple(f"layer.{number}" for number in range(len(params)))
    formats = tuple(f"f{bits:g}" for bits in BITS)
    return SensitivityTable(names, formats, params, np.ceil(params[:, None] * BITS / 8), damage, ("",) * len(names))


def write_csv(table: SensitivityTable, path: Path) -> None:
    """Write a table, a row for each layer and format."""
    with open(path, "w") as handle:
        handle.write("layer,params,format,bytes,kld\n")
        for name, params, sizes, damages in zip(table.layers, table.params, table.size, table.kld, strict=True):
            for form, size, damage in zip(table.formats, sizes, damages, strict=True):
                handle.write(f"{name},{params:.0f},{form},{size:.0f},{damage:.17g}\n")


def large_table(layers: int) -> None:
    """Print gap and time on a large table, for each target, and of the command with six of them."""
    table = experts_table(layers)
    problem = allocation_problem(table)
    print(f"{len(table.layers):,} layers x {len(table.formats)} formats, {problem.params / 1e9:.1f} B weights")
    print("target       sum of kld    average bits  gap      exact  seconds")
    targets = [Target(AVG_BITS, bits) for bits in (2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0)]
    low, high = reach(problem)[KLD]
    for target in [*targets, Target(KLD, (low * high) ** 0.5)]:
        made, seconds = timed(problem, target)
        told = f"{target.limit:g} bits" if target.kind == AVG_BITS else f"kld {target.limit:.2e}"
        print(
            f"{told:<12} {made.kld:<13.6e} {made.avg_bits_layers:<13.6f} {made.gap:<8.1e} {made.exact!s:<6} {seconds:.2f}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sensitivity.csv"
        write_csv(table, path)
        print(
            f"command, six targets, {path.stat().st_size / 2**20:.0f} MiB of CSV: {command(path, list(KNOWN), 1):.1f} s"
        )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--table", type=Path, default=TABLE)
    flags.add_argument("--layers", type=int, default=98_562)
    args = flags.parse_args()
    if args.table.exists():
        known_answers(args.table)
    else:
        print(f"{args.table} is not here: no known answers")
    large_table(args.layers)


if __name__ == "__main__":
    main()
