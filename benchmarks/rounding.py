"""The time of one layer rounded with error feedback against SparseGPT's sweep with one width, in turn in one process.

    python benchmarks/rounding.py [--columns 4096] [--rows 4096] [--format q4_k] [--descents 0 2] [--rounds 2] [--threads 1] [--whole]

Both have the same weight and Hessian, and factorize it. With `--whole` also all that a layer takes within a plan: rounding to nearest, the aim at
the reference model's outputs, and both errors. Seconds are the processor's; only their ratios mean something on a machine that other work shares.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import torch  # noqa: E402

from bitplan.formats.table import FORMATS  # noqa: E402
from bitplan.rounding.channel_grid import Quantizer  # noqa: E402
from bitplan.rounding.columns import LayerToRound  # noqa: E402
from bitplan.rounding.feedback import round_with_feedback  # noqa: E402
from bitplan.rounding.layer import REFERENCE_SHARE, round_layer  # noqa: E402
from bitplan.rounding.sweep import Pruning, factorize, sweep  # noqa: E402


def made_layer(rows: int, columns: int, name: str) -> LayerToRound:
    """Return a layer of Gaussian weights whose inputs have a few large columns."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(2 * columns, columns, generator=generator) * (
        0.2 + torch.rand(columns, generator=generator) ** 4
    )
    form = FORMATS[name]
    return LayerToRound(name, weight, 2 / len(inputs) * inputs.T @ inputs, form, form.group(None))


def seconds(work) -> float:
    """Return the processor's seconds of a function without arguments: of all threads, and undisturbed by other work that waits."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rows", type=int, default=4096)
    flags.add_argument("--columns", type=int, default=4096)
    flags.add_argument("--format", default="q4_k")
    flags.add_argument("--descents", type=int, nargs="+", default=[0, 2])
    flags.add_argument("--rounds", type=int, default=2)
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--whole", action="store_true")
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    layer = made_layer(args.rows, args.columns, args.format)

    def sparsegpt() -> None:
        quantizer = Quantizer(4)
        grid, factors = quantizer.grid(layer.weight, [4]), factorize(layer.hessian, layer.damping)
        sweep(layer.weight, factors.upper, Pruning(), grid, torch.zeros(args.columns, dtype=torch.int64))

    for number in range(args.rounds):
        base = seconds(sparsegpt)
        for count in args.descents:
            own = seconds(
                lambda count=count: round_with_feedback(
                    layer, factorize(layer.hessian, layer.damping), count
                ).quantized()
            )
            print(f"round {number + 1}: {count} descents: {own / base:.2f} of SparseGPT's {base:.1f} s", flush=True)
            if args.whole:
                aimed = replace(layer, drift=0.01 * layer.weight @ layer.hessian, share=REFERENCE_SHARE)
                whole = seconds(lambda aimed=aimed, count=count: round_layer(aimed, descents=count))
                print(f"    the whole layer: {whole / base:.2f}", flush=True)


if __name__ == "__main__":
    main()
