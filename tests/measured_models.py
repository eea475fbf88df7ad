"""Tiny models with a text, whose sensitivity tests measure, and the settings they measure under."""

from functools import cached_property
from pathlib import Path

import torch

from bitplan.evaluate.perplexity import score_plan
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.plans.smoothing import SmoothGroup, Smoothing
from bitplan.reference.opening import prepare_model
from bitplan.reference.reference import reference_of_tokens
from bitplan.reference.text import windows
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.local_errors import Choice, SensitivitySettings, activation_choices
from bitplan.sensitivity.measure import measure_table
from tests.families import TEXT

CHOICES = (*activation_choices("tensor"), Choice("int3", group_size=32), Choice("q8_0"))
SETTINGS = SensitivitySettings(CHOICES, (0.5,), tokens=64)
ALL = MeasureSettings("all")
PRICED = MeasureSettings(draws=3)
LENGTH, SEQUENCES = 24, 5


class Model:
    """A tiny model of a family and a text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = windows(folder, TEXT, LENGTH, SEQUENCES)
        self.opened = self.fresh()

    def fresh(self):
        made = prepare_model(self.folder, "fp32", "cpu", 1)
        made.model.tokens_per_batch = 2 * LENGTH
        return made

    def measured(self, output: Path, measure: MeasureSettings = ALL, settings=SETTINGS):
        return measure_table(self.opened, self.tokens, settings, measure, output)

    @cached_property
    def reference(self):
        final = self.opened.model.run(self.tokens)
        return reference_of_tokens(self.opened.checkpoint, self.tokens, final, self.opened.dtype)

    def alone(self, row, smoothing) -> float:
        """KL of the layer and formats of a row, by a full forward of the model under a plan for that one layer."""
        scale = smoothing.factor(row["layer"]) if row["smoothed"] else None
        own = None if scale is None else Smoothing((SmoothGroup((row["layer"],), scale),))
        plan = Plan({row["layer"]: LayerPlan(row["format"], row["inputs"], row["group_size"])}, smoothing=own)
        scores = score_plan(self.opened.model, self.opened.info, plan, self.reference, QuantizedWeights(limit=0))
        return scores.kl.double().mean().item()


def replace_tokens(model: Model, tokens: torch.Tensor) -> Model:
    made = Model.__new__(Model)
    made.folder, made.tokens, made.opened = model.folder, tokens, model.opened
    return made
