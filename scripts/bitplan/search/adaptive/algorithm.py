"""Adaptive Alpha-Hill threshold search: first the mxfp4 threshold, then the mxfp8 threshold, within a limit on perplexity.

A layer whose alpha is high learned less and gets fewer bits: alpha >= t -> mxfp4 (the polarity is a setting). Every kept
plan was evaluated and holds `(ppl - base) / base <= ppl_threshold`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bitplan.core.errors import user_error
from bitplan.formats.base import Format
from bitplan.formats.table import FORMATS, UNQUANTIZED, format_named
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import LayerPlan, Plan, average_bits

log = logging.getLogger(__name__)
FORMAT_OF_STAGE = ("mxfp4", "mxfp8")
POLARITIES = ("high_alpha_fewer_bits", "low_alpha_fewer_bits")


@dataclass(frozen=True)
class AdaptiveSettings:
    """Limits and steps of the search. `ppl_threshold` is a share (0.1: 10 %), `target_avg_bits` counts all parameters."""

    ppl_threshold: float = 0.1
    target_avg_bits: float = 8.0
    step_size: float = 0.5
    search: str = "linear"
    polarity: str = POLARITIES[0]
    group_size: int = 32


@dataclass
class AdaptiveQuantizationSearch:
    """The search. Subclass it for another strategy: `search_stage` decides which thresholds are tried.

    `alphas` holds the alpha of each quantizable layer; NaN is never compressed. `evaluate(plan)` returns a perplexity, or
    whatever other figure rises with damage; a subclass may override `evaluate_ppl` instead. `bit_mapping` names the format of
    each stage, fewest bits first, and `formats` is the table that these names are looked up in.
    """

    info: ModelInfo
    alphas: Mapping[str, float]
    evaluate: Callable[[Plan], float]
    settings: AdaptiveSettings = AdaptiveSettings()
    bit_mapping: tuple[str, ...] = FORMAT_OF_STAGE
    formats: Mapping[str, Format] = field(default_factory=lambda: FORMATS)
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: int = 0
    monotone: bool = True
    base_ppl: float = math.nan
    _known: dict[tuple[str, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.bit_mapping:
            format_named(name, self.formats)
        self.sign = 1 if self.settings.polarity == POLARITIES[0] else -1
        self.scores = {name: self.sign * alpha for name, alpha in self.alphas.items() if not math.isnan(alpha)}

    # -- plans ---------------------------------------------------------------------------------------------------

    def grid(self) -> list[float]:
        """Return the thresholds from the largest score down by `step_size`, none below the smallest."""
        if not self.scores:
            return []
        high, low = max(self.scores.values()), min(self.scores.values())
        steps = int((high - low) / self.settings.step_size + 1e-9)
        return [high - k * self.settings.step_size for k in range(steps + 1)]

    def format_of(self, layer: str, thresholds: Sequence[float | None]) -> str:
        """Return the layer's format: that of the first stage whose threshold its score reaches, else bf16."""
        score = self.scores.get(layer)
        reached = (
            form for form, t in zip(self.bit_mapping, thresholds, strict=False) if t is not None and score >= t - 1e-12
        )
        return "bf16" if score is None else next(reached, "bf16")

    def plan(self, thresholds: Sequence[float | None]) -> Plan:
        """Return the plan of the stages' thresholds; None compresses nothing in that stage."""
        layers = {}
        for layer in self.info.layers:
            form = "bf16" if layer.protected else self.format_of(layer.name, thresholds)
            alpha = self.alphas.get(layer.name)
            notes = {"category": layer.category} | ({} if alpha is None else {"alpha_hill": alpha})
            inputs = form if self.formats[form].for_activations else UNQUANTIZED
            layers[layer.name] = (
                LayerPlan(notes=notes) if form == "bf16" else LayerPlan(form, inputs, self.settings.group_size, notes)
            )
        return Plan(layers)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluate_ppl(self, plan: Plan) -> float:
        """Return the figure that the limit is on: a perplexity, or another one that rises with damage."""
        return self.evaluate(plan)

    def ppl(self, plan: Plan) -> tuple[float, bool]:
        """Return the plan's perplexity and whether it had to be evaluated: a plan that is known costs nothing."""
        key = tuple(plan.of(layer.name).wq for layer in self.info.quantizable)
        fresh = key not in self._known
        if fresh:
            self._known[key] = self.evaluate_ppl(plan)
            self.evaluations += 1
        return self._known[key], fresh

    def try_threshold(self, stage: int, thresholds: Sequence[float | None]) -> tuple[bool, float]:
        """Evaluate one step, write it into the history and return whether it holds the limit, and its average bits."""
        plan = self.plan(thresholds)
        ppl, fresh = self.ppl(plan)
        increase = (ppl - self.base_ppl) / self.base_ppl
        bits = average_bits(plan, self.info, self.formats).avg_bits
        counts = plan.counts(self.info)
        threshold = self.sign * thresholds[stage]
        step = {
            "stage": self.bit_mapping[stage],
            "threshold": threshold,
            "avg_bits": bits,
            "ppl": ppl,
            "ppl_increase": increase,
        }
        self.history.append(
            {**step, "layers": {form: counts.get(form, 0) for form in (*self.bit_mapping, "bf16")}, "evaluated": fresh}
        )
        log.info(
            "%s threshold %.3f: %.3f bits, ppl %.4f (%+.2f %%)",
            self.bit_mapping[stage],
            threshold,
            bits,
            ppl,
            100 * increase,
        )
        # A NaN perplexity compares false: a plan that breaks the model never holds.
        return increase <= self.settings.ppl_threshold, bits

    # -- strategy ------------------------------------------------------------------------------------------------

    def search_stage(self, stage: int, fixed: Sequence[float | None]) -> float | None:
        """Return the lowest threshold of a stage that holds, given the earlier stages' thresholds; None if the first one breaks."""
        above = next((t for t in reversed(fixed) if t is not None), math.inf)
        candidates = [t for t in self.grid() if t < above - 1e-12]
        walk = self._bisect if self.settings.search == "bisect" else self._linear
        return walk(stage, fixed, candidates)

    def _linear(self, stage: int, fixed: Sequence[float | None], candidates: Sequence[float]) -> float | None:
        kept = None
        for threshold in candidates:
            holds, bits = self.try_threshold(stage, (*fixed, threshold))
            if not holds:
                break
            kept = threshold
            if bits <= self.settings.target_avg_bits:
                break
        return kept

    def _bisect(self, stage: int, fixed: Sequence[float | None], candidates: Sequence[float]) -> float | None:
        """Return what `_linear` returns where perplexity rises with every step, in about log2 as many evaluations."""
        reached = (i for i, t in enumerate(candidates) if self._bits((*fixed, t)) <= self.settings.target_avg_bits)
        low, high = -1, next(reached, len(candidates) - 1)  # candidates[low] holds; nothing past `high` is wanted
        probe = high
        while low < high:
            holds, _ = self.try_threshold(stage, (*fixed, candidates[probe]))
            low, high = (probe, high) if holds else (low, probe - 1)
            probe = (low + high + 1) // 2
        self._check_monotone(stage)
        return candidates[low] if low >= 0 else None

    def _bits(self, thresholds: Sequence[float | None]) -> float:
        return average_bits(self.plan(thresholds), self.info, self.formats).avg_bits

    def _check_monotone(self, stage: int) -> None:
        steps = sorted(
            (s for s in self.history if s["stage"] == self.bit_mapping[stage]),
            key=lambda s: -self.sign * s["threshold"],
        )
        if any(later["ppl"] < earlier["ppl"] for earlier, later in pairwise(steps)):
            self.monotone = False
            log.warning(
                "perplexity did not rise with every lower %s threshold: a linear search may keep another one",
                self.bit_mapping[stage],
            )

    # -- the whole search ----------------------------------------------------------------------------------------

    def thresholds(self) -> Iterator[float | None]:
        """Yield the threshold of each stage; once the target is reached, later stages compress nothing."""
        found: tuple[float | None, ...] = ()
        for stage in range(len(self.bit_mapping)):
            done = self._bits(found) <= self.settings.target_avg_bits
            found = (*found, None if done else self.search_stage(stage, found))
            yield found[-1]

    def run(self) -> Plan:
        """Return the plan found, with the search's summary: thresholds, figures, history, cost."""
        self.base_ppl, _ = self.ppl(self.plan(()))
        if self.base_ppl == 0:
            what = "the model makes no error here, and a share of none is no limit"
            raise user_error("the figure to hold", what, "Use more documents, or another metric")
        log.info(
            "baseline ppl %.4f, %d layers with an alpha, %d without",
            self.base_ppl,
            len(self.scores),
            len(self.alphas) - len(self.scores),
        )
        thresholds = tuple(self.thresholds())
        plan = self.plan(thresholds)
        ppl, _ = self.ppl(plan)
        return Plan(plan.layers, self.summary(thresholds, plan, ppl))

    def summary(self, thresholds: Sequence[float | None], plan: Plan, ppl: float) -> dict[str, Any]:
        """Return the `search_summary` of the configuration."""
        s, bits = self.settings, average_bits(plan, self.info, self.formats)
        named = {
            f"{form}_threshold": None if t is None else self.sign * t
            for form, t in zip(self.bit_mapping, thresholds, strict=True)
        }
        missed = max(0.0, bits.avg_bits - s.target_avg_bits)
        return {
            "method": "adaptive",
            **named,
            "ppl_threshold": s.ppl_threshold,
            "target_avg_bits": s.target_avg_bits,
            "step_size": s.step_size,
            "search": s.search,
            "polarity": s.polarity,
            "base_ppl": self.base_ppl,
            "ppl": ppl,
            "ppl_increase": (ppl - self.base_ppl) / self.base_ppl,
            "avg_bits": bits.avg_bits,
            "avg_bits_layers": bits.avg_bits_layers,
            "layers": plan.counts(self.info),
            "layers_without_alpha": sorted(set(self.alphas) - set(self.scores)),
            "target_reached": missed <= 1e-9,
            "target_missed_by": missed,
            "monotone": self.monotone if s.search == "bisect" else None,
            "search_history": self.history,
            "cost": {"evaluations": self.evaluations},
        }
