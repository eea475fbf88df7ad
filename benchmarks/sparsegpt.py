"""How much longer SparseGPT takes with a width per channel than with one width, on one layer, side by side in one process.

    python benchmarks/sparsegpt.py [--size 4096] [--tokens 262144] [--rounds 3] [--threads 2]

Every variant is run once in each round, in turn; ratios are paired within a round. The moments of the calibration tokens are
accumulated once, before the clock starts.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from bitplan.rounding.channel_grid import Quantizer
from bitplan.search.sparsegpt.layer import SparseGPT
from bitplan.statistics.hessian import InputMoments

BATCH = 2048
METHODS = ("uniform", "quantile", "budget", "optimal")


def accumulated(size: int, tokens: int) -> InputMoments:
    """Return the moments of correlated random inputs, in batches of 2048 tokens."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(size, generator=generator).add_(0.1)
    mixing = torch.randn(size, size, generator=generator) / size**0.5 + torch.eye(size)
    moments = InputMoments.empty(size, torch.device("cpu"))
    for _ in range(tokens // BATCH):
        moments.add_((torch.randn(BATCH, size, generator=generator) @ mixing) * scales)
    return moments


def timed(weight: torch.Tensor, moments: InputMoments, method: str, cut: bool, sparsity: float) -> float:
    """Return the seconds that one layer takes."""
    layer = nn.Linear(*reversed(weight.shape), bias=False)
    layer.weight.data = weight.clone()
    gpt = SparseGPT(layer, moments=moments)
    gpt.quantizer = Quantizer(4, mse=cut)
    started = time.perf_counter()
    gpt.fasterprune(sparsity, target_avg_bits=4.0, bit_allocation_method=method)
    return time.perf_counter() - started


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--size", type=int, default=4096)
    flags.add_argument("--tokens", type=int, default=128 * 2048)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--threads", type=int, default=2)
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    moments = accumulated(args.size, args.tokens)
    print(f"{args.tokens} tokens accumulated in {time.perf_counter() - started:.0f} s")
    weight = torch.randn(args.size, args.size, generator=torch.Generator().manual_seed(1)) * 0.02
    for cut in (True, False):
        for sparsity in (0.0, 0.5):
            rounds = [{m: timed(weight, moments, m, cut, sparsity) for m in METHODS} for _ in range(args.rounds)]
            for method in METHODS:
                ratios = [each[method] / each["uniform"] for each in rounds]
                seconds = statistics.median(each[method] for each in rounds)
                print(
                    f"ranges {'cut' if cut else 'whole':<6} sparsity {sparsity:.1f} {method:<9} {seconds:7.2f} s"
                    f"   {statistics.median(ratios):.2f} of one width ({min(ratios):.2f} to {max(ratios):.2f})"
                )


if __name__ == "__main__":
    main()
