"""Perplexity and KL of a folder for MLX, in mlx-lm on this machine's processor."""

import os
from pathlib import Path

import torch
from torch import Tensor

from bitplan.evaluate.scores import TokenScores
from bitplan.reference.reference import Reference
from bitplan.runtimes.packed.scores import WindowLogits, score_windows


def load_window_logits(folder: Path) -> WindowLogits:
    """Return the function that computes a window's logits as mlx-lm does, with all that is not packed widened to float32.

    16-bit arithmetic differs by machine: on Apple's processors it is not what a Linux processor computes.
    """
    import mlx.core as mx
    import numpy as np
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    net, _ = load_model(folder)
    net.set_dtype(mx.float32)

    def run(tokens: Tensor) -> Tensor:
        made = net(mx.array(tokens.unsqueeze(0).numpy()))[0].astype(mx.float32)
        return torch.from_numpy(np.array(made))

    return run


def score_folder(folder: Path, reference: Reference, threads: int) -> TokenScores:
    """Return the scores of a folder for MLX on the reference's tokens. MLX reads its number of threads from the environment."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)
    return score_windows(folder, reference, load_window_logits(folder))
