"""Perplexity and KL of a GGUF file, in llama.cpp."""

from functools import lru_cache
from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFReader
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.evaluate.scores import LogitsOf, TokenScores, score
from bitplan.reference.reference import Reference
from bitplan.runtimes.gguf.llama_runtime import Runtime, opened

SOUND = "Create it again from a checkpoint without NaN or Inf weights"
OVERFLOW = (
    "Values over 65504 overflow in f16: convert the base with --type bf16 (settings: base_type), use bf16 for f16 in baselines and"
    " export.unquantized"
)


def _runtime_logits(runtime: Runtime, tokens: Tensor, path: Path, shown: Path) -> LogitsOf:
    @lru_cache(maxsize=1)
    def logits(window: int) -> Tensor:
        """Return the logits of a window (length, vocabulary). Raises `UserError` for NaN and Inf."""
        held = torch.from_numpy(runtime.window_logits(tokens[window].tolist()))
        wrong = (~held.isfinite().all(dim=1)).nonzero()
        if len(wrong):
            half = any(tensor.tensor_type is GGMLQuantizationType.F16 for tensor in GGUFReader(path).tensors)
            what = f"produces NaN or Inf logits in llama.cpp, first at token {int(wrong[0])} of window {window}"
            raise user_error("GGUF-LOGITS-NOT-FINITE", shown, what, OVERFLOW if half else SOUND)
        return held

    return lambda window, rows: logits(window)[rows]


def score_gguf(path: Path, reference: Reference, threads: int, shown: Path | None = None) -> TokenScores:
    """Return the scores of a GGUF file, called `shown` in messages, on the reference's tokens.

    Raises `UserError` when its vocabulary is another, or its logits are not finite.
    """
    with opened(path, reference.tokens.shape[1], threads) as runtime:
        expected = reference.head.vocabulary
        if runtime.vocabulary != expected:
            what = f"has {runtime.vocabulary} tokens, the model has {expected}"
            raise user_error(
                "GGUF-VOCABULARY",
                shown or path,
                what,
                "It belongs to a different model: give the GGUF file of this model",
            )
        logits_of = _runtime_logits(runtime, reference.tokens, path, shown or path)
        return score(reference, reference.head.read(), logits_of)
