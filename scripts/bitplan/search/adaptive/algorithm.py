"""Adaptive Alpha-Hill threshold search: first the mxfp4 threshold, then the mxfp8 threshold, within a limit on perplexity.

A layer whose alpha is high learned less and gets fewer bits: alpha >= t -> mxfp4 (the polarity is a setting). Every kept
plan was evaluated and holds `(ppl - base) / base <= ppl_threshold`.

A stage lowers its threshold step by step, and ends at the limit or on reaching the smallest alpha, which is always the last point of
the grid. The mxfp4 stage may spend room on one layer that the mxfp8 stage would have spent on many, so that a larger limit would give
more bits. Therefore the two stages are also searched under stricter limits, as long as these can give fewer bits, and the plan with
the fewest bits is the result. `target_avg_bits` ends no stage: it is the average that the result is compared with.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bitplan.core.errors import user_error
from bitplan.formats.base import Format
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.table import FORMATS, get_format
from bitplan.models.layers import ModelInfo
from bitplan.plans.fitting import fit_layers
from bitplan.plans.plan import LayerPlan, Plan, average_bits

log = logging.getLogger(__name__)
FORMAT_OF_STAGE = ("mxfp4", "mxfp8")
POLARITIES = ("high_alpha_fewer_bits", "low_alpha_fewer_bits")
PERPLEXITY = "perplexity"
# Why a stage went no further.
NO_ALPHA, SMALLEST, LIMIT = "no layer has an alpha", "smallest alpha", "limit"
FEWER_BITS, STRATEGY = "a lower threshold leaves more bits in all", "strategy"
ROUNDING = 1e-12

Thresholds = tuple[float | None, ...]


@dataclass(frozen=True)
class AdaptiveSettings:
    """Limits and steps of the search. `ppl_threshold` is a share (0.1: 10 %), `target_avg_bits` counts all parameters.

    `ppl_threshold` decides how far the search goes; whether that reaches `target_avg_bits` is said in the summary.
    """

    ppl_threshold: float = 0.1
    target_avg_bits: float = 8.0
    step_size: float = 0.5
    search: str = "linear"
    polarity: str = POLARITIES[0]
    group_size: int = 32


@dataclass
class AdaptiveQuantizationSearch:
    """The search. Subclass it for another strategy: `search_stage` decides which thresholds are tried.

    `alphas` holds the alpha of each quantizable layer; one that is not finite is never compressed. `evaluate(plan)` returns a
    perplexity, or whatever other figure rises with damage, called `measure`; a subclass may override `evaluate_ppl` instead.
    `bit_mapping` names the format of each stage, fewest bits first, and `formats` is the table that these names are looked up in.
    """

    info: ModelInfo
    alphas: Mapping[str, float]
    evaluate: Callable[[Plan], float]
    settings: AdaptiveSettings = AdaptiveSettings()
    bit_mapping: tuple[str, ...] = FORMAT_OF_STAGE
    formats: Mapping[str, Format] = field(default_factory=lambda: FORMATS)
    measure: str = PERPLEXITY
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: int = 0
    monotone: bool = True
    base_ppl: float = math.nan
    limit: float = math.nan
    _known: dict[tuple[str, ...], float] = field(default_factory=dict)
    _tried: dict[Thresholds, float] = field(default_factory=dict)
    _bits_to_beat: float = math.inf

    def __post_init__(self) -> None:
        for name in self.bit_mapping:
            get_format(name, self.formats)
        self.sign = 1 if self.settings.polarity == POLARITIES[0] else -1
        self.scores = {name: self.sign * alpha for name, alpha in self.alphas.items() if math.isfinite(alpha)}
        self.limit = self.settings.ppl_threshold

    # -- plans ---------------------------------------------------------------------------------------------------

    def grid(self) -> list[float]:
        """Return the thresholds from the largest score down by `step_size`; the last one is the smallest score."""
        if not self.scores:
            return []
        high, low = max(self.scores.values()), min(self.scores.values())
        steps = math.ceil((high - low) / self.settings.step_size - 1e-9)
        return [*(high - k * self.settings.step_size for k in range(steps)), low]

    def format_of(self, layer: str, thresholds: Sequence[float | None]) -> str:
        """Return the layer's format: that of the first stage whose threshold its score reaches, else bf16."""
        score = self.scores.get(layer)
        reached = (
            form
            for form, t in zip(self.bit_mapping, thresholds, strict=False)
            if t is not None and score >= t - ROUNDING
        )
        return "bf16" if score is None else next(reached, "bf16")

    def plan(self, thresholds: Sequence[float | None]) -> Plan:
        """Return the plan of the stages' thresholds; None compresses nothing in that stage. Rows that do not fit get a substitute."""
        layers = {}
        for layer in self.info.layers:
            form = "bf16" if layer.protected else self.format_of(layer.name, thresholds)
            alpha = self.alphas.get(layer.name)
            notes = {"category": layer.category} | ({} if alpha is None else {"alpha_hill": alpha})
            inputs = form if self.formats[form].for_activations else UNQUANTIZED
            layers[layer.name] = (
                LayerPlan(notes=notes) if form == "bf16" else LayerPlan(form, inputs, self.settings.group_size, notes)
            )
        return Plan(fit_layers(layers, self.info.layers))

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
        plan, key = self.plan(thresholds), tuple(thresholds)
        ppl, fresh = self.ppl(plan)
        increase = (ppl - self.base_ppl) / self.base_ppl
        bits = average_bits(plan, self.info, self.formats).avg_bits
        if key not in self._tried:
            self._tried[key] = increase
            self._note_(key, plan, bits, ppl, fresh)
        # A NaN perplexity compares false: a plan that breaks the model never holds.
        return increase <= self.limit, bits

    def _note_(self, thresholds: Thresholds, plan: Plan, bits: float, ppl: float, fresh: bool) -> None:
        """Write one step into the history and the log."""
        *earlier, stage = self.bit_mapping[: len(thresholds)]
        threshold, counts = self.sign * thresholds[-1], plan.counts(self.info)
        increase = (ppl - self.base_ppl) / self.base_ppl
        named = ((form, t) for form, t in zip(earlier, thresholds, strict=False) if t is not None)
        self.history.append(
            {
                **{"stage": stage, "threshold": threshold, "avg_bits": bits, "ppl": ppl, "ppl_increase": increase},
                **{f"{form}_threshold": self.sign * t for form, t in named},
                **self._of_measure({"value": ppl, "value_increase": increase}),
                "layers": dict.fromkeys((*self.bit_mapping, "bf16"), 0) | counts,
                "evaluated": fresh,
            }
        )
        shown = (stage, threshold, bits, self.measure, ppl, 100 * increase)
        log.info("%s threshold %.3f: %.3f bits, %s %.4f (%+.2f %%)", *shown)

    def _of_measure(self, figures: Mapping[str, float]) -> dict[str, Any]:
        """Return what a step or a summary says beside its keys `ppl`: nothing where these are perplexities."""
        return {} if self.measure == PERPLEXITY else {"measure": self.measure, **figures}

    # -- strategy ------------------------------------------------------------------------------------------------

    def search_stage(self, stage: int, fixed: Sequence[float | None]) -> float | None:
        """Return the lowest threshold of a stage that holds, given the earlier stages' thresholds; None if the first one breaks.

        Where the earlier stages have taken every layer, that is the smallest score: no layer is left to move.
        """
        above = next((t for t in reversed(fixed) if t is not None), math.inf)
        candidates = [t for t in self.grid() if t < above - ROUNDING]
        if not candidates:
            return above if math.isfinite(above) else None
        if stage == len(self.bit_mapping) - 1:
            candidates = [t for t in candidates if self._bits((*fixed, t)) < self._bits_to_beat]
        walk = self._bisect if self.settings.search == "bisect" else self._linear
        return walk(stage, fixed, candidates)

    def _linear(self, stage: int, fixed: Sequence[float | None], candidates: Sequence[float]) -> float | None:
        kept = None
        for threshold in candidates:
            holds, _ = self.try_threshold(stage, (*fixed, threshold))
            if not holds:
                break
            kept = threshold
        return kept

    def _bisect(self, stage: int, fixed: Sequence[float | None], candidates: Sequence[float]) -> float | None:
        """Return what `_linear` returns where the measure rises with every step, in about log2 as many evaluations."""
        low, high = -1, len(candidates) - 1  # candidates[low] holds
        # Under a stricter limit most often nothing better is found: the first candidate says so at once.
        probe = high if math.isinf(self._bits_to_beat) else min(0, high)
        while low < high:
            holds, _ = self.try_threshold(stage, (*fixed, candidates[probe]))
            low, high = (probe, high) if holds else (low, probe - 1)
            probe = (low + high + 1) // 2
        self._check_monotone(stage, fixed)
        return candidates[low] if low >= 0 else None

    def _bits(self, thresholds: Sequence[float | None]) -> float:
        return average_bits(self.plan(thresholds), self.info, self.formats).avg_bits

    def _steps(self, fixed: Sequence[float | None]) -> list[tuple[float, float]]:
        """Return the thresholds that were tried after those of the earlier stages, largest first, each with its increase."""
        count = len(fixed)
        found = [(key[count], rise) for key, rise in self._tried.items() if key[:-1] == tuple(fixed)]
        return sorted(found, reverse=True)

    def _check_monotone(self, stage: int, fixed: Sequence[float | None]) -> None:
        if any(later < earlier for (_, earlier), (_, later) in pairwise(self._steps(fixed))):
            self.monotone = False
            shown = (self.measure, self.bit_mapping[stage])
            log.warning("%s did not rise with every lower %s threshold: a linear search may keep another one", *shown)

    # -- the whole search ----------------------------------------------------------------------------------------

    def thresholds(self, fixed: Thresholds = ()) -> Thresholds:
        """Return the thresholds of all stages, the earlier ones' given: of the limit, or of a stricter one that gives fewer bits."""
        stage, limit = len(fixed), self.limit
        if stage >= len(self.bit_mapping) - 1:
            return (*fixed, self.search_stage(stage, fixed)) if stage < len(self.bit_mapping) else fixed
        best, last = None, -math.inf
        while True:
            held = self.search_stage(stage, fixed)
            if best is not None and held is not None and held <= last:
                break  # a strategy that does not look at the limit
            found = self.thresholds((*fixed, held))
            best = found if best is None or self._bits(found) < self._bits(best) else best
            self._bits_to_beat = min(self._bits_to_beat, self._bits(best))
            stricter = self._stricter(fixed, held)
            if stricter is None:
                break
            self.limit, last = stricter, held
        self.limit = limit
        return best

    def _stricter(self, fixed: Thresholds, held: float | None) -> float | None:
        """Return the next stricter limit under which a stage keeps a higher threshold; None where no such one can give fewer bits."""
        if held is None:
            return None
        higher = min((t for t in self.grid() if t > held + ROUNDING), default=None)
        smallest = self._bits((*fixed, higher, min(self.scores.values())))
        rises = [rise for t, rise in self._steps(fixed) if t >= held - ROUNDING]
        if not rises or smallest >= self._bits_to_beat:
            return None
        return math.nextafter(max(rises), -math.inf)

    def _stopped(self, thresholds: Thresholds, stage: int) -> str:
        """Return why a stage went no further."""
        if not self.scores:
            return NO_ALPHA
        held = math.inf if thresholds[stage] is None else thresholds[stage]
        if held <= min(self.scores.values()) + ROUNDING:
            return SMALLEST
        lower = [rise for t, rise in self._steps(thresholds[:stage]) if t < held - ROUNDING]
        if any(rise <= self.settings.ppl_threshold for rise in lower):
            return FEWER_BITS
        return LIMIT if lower else STRATEGY

    def run(self) -> Plan:
        """Return the plan found, with the search's summary: thresholds, figures, history, cost."""
        self.base_ppl, _ = self.ppl(self.plan(()))
        self._check_base()
        counts = (len(self.scores), len(self.alphas) - len(self.scores))
        log.info("baseline %s %.4f, %d layers with an alpha, %d without", self.measure, self.base_ppl, *counts)
        thresholds = self.thresholds()
        plan = self.plan(thresholds)
        ppl, _ = self.ppl(plan)
        return Plan(plan.layers, self.summary(thresholds, plan, ppl))

    def _check_base(self) -> None:
        """Raise `UserError` for a model whose own figure leaves no share of it to be a limit."""
        if self.base_ppl == 0:
            what = "the model makes no error here, and a share of none is no limit"
            raise user_error("the figure to hold", what, "Use more documents, or another metric")
        if not (math.isfinite(self.base_ppl) and self.base_ppl > 0):
            what = f"{self.measure} of the unquantized model is {self.base_ppl:g}, and a share of that is no limit"
            raise user_error("the figure to hold", what, "Use bf16 or fp32, other text, or another metric")

    def summary(self, thresholds: Sequence[float | None], plan: Plan, ppl: float) -> dict[str, Any]:
        """Return the `search_summary` of the configuration."""
        s, bits = self.settings, average_bits(plan, self.info, self.formats)
        named = {
            f"{form}_threshold": None if t is None else self.sign * t
            for form, t in zip(self.bit_mapping, thresholds, strict=True)
        }
        increase = (ppl - self.base_ppl) / self.base_ppl
        missed = max(0.0, bits.avg_bits - s.target_avg_bits)
        return {
            "method": "adaptive",
            **named,
            "stopped": {form: self._stopped(tuple(thresholds), i) for i, form in enumerate(self.bit_mapping)},
            "ppl_threshold": s.ppl_threshold,
            "target_avg_bits": s.target_avg_bits,
            "step_size": s.step_size,
            "search": s.search,
            "polarity": s.polarity,
            "base_ppl": self.base_ppl,
            "ppl": ppl,
            "ppl_increase": increase,
            **self._of_measure({"value": ppl, "base_value": self.base_ppl, "value_increase": increase}),
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
