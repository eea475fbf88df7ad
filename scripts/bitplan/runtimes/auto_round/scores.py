"""Perplexity and KL of a checkpoint in AutoRound's format, in its own torch backend."""

from pathlib import Path

import torch
from torch import nn

from bitplan.core.files import read_json
from bitplan.evaluate.scores import TokenScores
from bitplan.reference.reference import Reference
from bitplan.runtimes.packed.scores import logits_in, score_windows

BACKEND = "auto_round:torch"


def load_half(folder: Path) -> nn.Module:
    """Return the model as auto-round loads it, in float16: the type of its scales, and the one that a server computes in."""
    from transformers import AutoModelForCausalLM, AutoRoundConfig

    # A plan that leaves every layer at 16 bits is a checkpoint without packed layers.
    packed = "quantization_config" in read_json(folder / "config.json")
    backend = {"quantization_config": AutoRoundConfig(backend=BACKEND)} if packed else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, trust_remote_code=False, **backend).eval()


def score_folder(folder: Path, reference: Reference, threads: int) -> TokenScores:
    """Return the scores of a checkpoint in AutoRound's format on the reference's tokens."""
    torch.set_num_threads(threads)
    return score_windows(folder, reference, logits_in(load_half(folder)))
