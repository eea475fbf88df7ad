"""A model opened for compression and rounding, with a text; and the damage of a plan on it."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bitplan.evaluate.perplexity import score_plan
from bitplan.evaluate.scores import summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.reference.reference import make_reference
from bitplan.rounding.sweep import Pruning
from bitplan.search.sparsegpt.channel_plan import channel_plan
from bitplan.search.sparsegpt.model import compress_model
from bitplan.search.sparsegpt.model_settings import ModelSettings
from tests.families import TEXT

HALF = ModelSettings(Pruning(0.5), (4.0,), method="budget", cut_ranges=True)


class Opened:
    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.info = describe(self.checkpoint)
        self.model = open_model(self.checkpoint)
        self.reference = make_reference(self.model, TEXT, 32, 6, "fp32")

    def compressed(self, folder: Path, settings: ModelSettings = HALF):
        return compress_model(self.model, self.info, self.reference.tokens, settings, "fp32", folder)

    def plan(self, folder: Path, settings: ModelSettings = HALF):
        return channel_plan(self.compressed(folder, settings), self.info, settings, {})


def damage(made: Opened, plan) -> float:
    scores = score_plan(made.model, made.info, plan, made.held_out, QuantizedWeights(limit=0))
    return summarize(scores)["kl_mean"]


def plain_nll(folder: Path, tokens: torch.Tensor) -> float:
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = module(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
