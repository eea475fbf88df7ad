"""Perplexity and KL of a folder of packed tensors, whatever program computes its logits."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from bitplan.core.errors import user_error
from bitplan.evaluate.scores import TokenScores, score
from bitplan.reference.reference import Reference

# Logits (length, vocabulary) float32 of a window of tokens (length,) int64.
WindowLogits = Callable[[Tensor], Tensor]


def logits_in(net: nn.Module) -> WindowLogits:
    """Return the function that computes a window's logits in a model of transformers."""

    @torch.inference_mode()
    def run(tokens: Tensor) -> Tensor:
        return net(tokens.to(torch.long).unsqueeze(0)).logits[0].float()

    return run


def score_windows(folder: Path, reference: Reference, run: WindowLogits) -> TokenScores:
    """Return the scores of a model on the reference's tokens. Raises `UserError` for one of another vocabulary, and for NaN and Inf."""
    expected = reference.head.vocabulary

    @lru_cache(maxsize=1)
    def logits(window: int) -> Tensor:
        """Return the logits of a window (length, vocabulary). Raises `UserError` for another vocabulary, NaN and Inf."""
        held = run(reference.tokens[window])
        if held.shape[1] != expected:
            what = f"has {held.shape[1]} tokens, the model has {expected}"
            hint = "It was made from another model: give the folder of this one"
            raise user_error("RUNTIME-OTHER-MODEL", folder, what, hint)
        if not held.isfinite().all():
            what = f"gives NaN or infinite logits in window {window}"
            raise user_error("RUNTIME-NOT-FINITE", folder, what, "Export the plan again")
        return held

    return score(reference, reference.head.read(), lambda window, rows: logits(window)[rows])
