"""The optimal search on a model: exact allocation from a measured table, then correction and refinement, each kept only if fresh text confirms it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitplan.core.errors import UserError, user_error
from bitplan.formats.pairs import parse_pair
from bitplan.models.layers import ModelInfo
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.fitting import substitute_note
from bitplan.plans.plan import UNQUANTIZED_BITS, LayerPlan, Plan, average_bits, with_tied_output
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import Reference
from bitplan.search.allocation.constraints import Constraints
from bitplan.search.allocation.problem import BYTES, AllocationProblem, Target, allocate, allocation_problem
from bitplan.search.damage import PlanDamage, part_of
from bitplan.search.evaluations import Evaluations
from bitplan.search.knapsack.choices import as_choice, total_size
from bitplan.search.optimal.candidates import sharing
from bitplan.search.optimal.correction import Prospect, corrected, prospect
from bitplan.search.optimal.paired import Difference, difference
from bitplan.search.optimal.reach import layer_budget, out_of_reach
from bitplan.search.optimal.refinement import RefinementSettings, refine
from bitplan.search.optimal.settings import FEWEST_WINDOWS
from bitplan.sensitivity.table import SensitivityTable

log = logging.getLogger(__name__)
CORRECTION = "correction"

Choice = NDArray[np.intp]


@dataclass(frozen=True)
class OptimalSettings:
    """Which steps are taken after the exact solution: `correct` measures up to `swaps` steps in place, where fresh text could show what that
    gains, `refine` swaps at one size.

    `groups` says what shares a format: the experts of a projection (a GGUF's tensors), fusion groups (q, k and v; gate and up), nothing;
    None: experts where the palette is of GGUF types, fusion groups elsewhere. `runtimes` are those that are to hold the plan; with
    `stored_sizes` the table's sizes are what they store.
    """

    palette: tuple[str, ...]
    correct: bool = True
    refine: bool = False
    swaps: int = 24
    groups: str | None = None
    refinement_settings: RefinementSettings = field(default_factory=RefinementSettings)
    runtimes: tuple[str, ...] = ()
    stored_sizes: bool = False

    def groups_of(self, info: ModelInfo, layers: Sequence[str]) -> tuple[str, ...]:
        """Return the group of each layer of a table, "" for a layer alone."""
        return sharing(self.palette, info, layers, self.groups)


@dataclass(frozen=True)
class Stage:
    """What a step of the search gave: KL of its plan against the one before on fresh text, whether it was kept, what it cost.

    Of a step that was estimated first the `prospect`; one that is not worthwhile was not tried, and changes nothing.
    """

    name: str
    kl_before: float
    change: Difference
    kept: bool
    evaluations: int
    block_forward_tokens: int
    prospect: Prospect | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the stage for a plan's summary."""
        tried = {} if self.prospect is None else {"tried": self.prospect.worthwhile, **asdict(self.prospect)}
        return {
            **tried,
            "stage": self.name,
            "kl_before": self.kl_before,
            "kl_change": self.change.mean,
            "interval": [self.change.low, self.change.high],
            "windows": self.change.windows,
            "kept": self.kept,
            "evaluations": self.evaluations,
            "block_forward_tokens": self.block_forward_tokens,
        }


def plan_maker(problem: AllocationProblem, info: ModelInfo, palette: Sequence[str] = ()) -> Callable[[Choice], Plan]:
    """Return the function that makes the plan of a choice (units,); it notes which formats of the palette a substitute stands for."""
    outside = {layer.name for layer in info.layers if layer.protected}

    def plan_of(choice: Choice) -> Plan:
        """Return the plan of a choice (units,), layers outside the table unquantized."""
        formats = {
            name: problem.table.formats[option]
            for name, option in zip(problem.table.layers, choice[problem.unit].tolist(), strict=True)
        }
        layers = {}
        for layer in info.layers:
            form = formats.get(layer.name, "bf16")
            asked = problem.table.asked.get((layer.name, form), ()) if layer.protected else palette
            notes = {"category": layer.category, **substitute_note(asked, form, layer)}
            lifted = {"embeddings": True} if layer.name in outside and layer.name in formats else {}
            layers[layer.name] = LayerPlan(*astuple(parse_pair(form)), notes=notes, **lifted)
        # A tied output matrix is the embedding: a plan that is scored before it is written quantizes both, too.
        return Plan(with_tied_output(layers, info.layers, "plan"))

    return plan_of


def check_fresh(fresh: Reference | None) -> None:
    """Raise `UserError` for text that is too short to decide on steps, or absent."""
    if fresh is None or len(fresh.tokens) < FEWEST_WINDOWS:
        what = f"has fewer than {FEWEST_WINDOWS} windows, too few to decide on corrections and refinement"
        hint = "Give a longer text or a larger --sequences, or --no-correct and --no-refine"
        raise user_error("OPTIMAL-NO-VALIDATION", "--validation", what, hint)


@dataclass
class OptimalSearch:
    """The search from one table for several targets. `calibration` is what was measured on, `fresh` text that it has not seen.

    Both may be None where neither correction nor refinement is asked for. Evaluations are `kept` until the results are written.
    """

    model: PreparedModel
    table: SensitivityTable
    settings: OptimalSettings
    weights: QuantizedWeights
    calibration: Reference | None = None
    fresh: Reference | None = None
    kept: Evaluations = field(default_factory=Evaluations)

    def __post_init__(self) -> None:
        groups = self.settings.groups_of(self.model.info, self.table.layers)
        self.problem = allocation_problem(self.table, Constraints(groups))
        self._plan_of = plan_maker(self.problem, self.model.info, self.settings.palette)
        if self._steps:
            check_fresh(self.fresh)

    @property
    def _steps(self) -> bool:
        return self.settings.correct or self.settings.refine

    def budget(self, target_avg_bits: float) -> float:
        """Return the budget of a target in bytes. Raises `UserError` naming what can be reached."""
        wrong = out_of_reach(self.problem, self.model.info, target_avg_bits)
        if wrong:
            raise UserError([replace(wrong, where="--target-avg-bits")])
        return layer_budget(target_avg_bits, self.table, self.model.info)

    def run(self, budget: float) -> tuple[Plan, dict[str, Any]]:
        """Return the plan within a budget in bytes, and the figures of its search."""
        before = self.model.model.tokens_forwarded
        made = allocate(self.problem, [Target(BYTES, budget)])[0]
        names = [made.plan[name] for name in self.problem.choices.layers]
        choice, stages = as_choice(self.problem.choices, names), []
        if self._steps:
            choice, stages = self._improved(choice, budget)
        figures = {
            "kld_predicted": made.kld,
            "kld_from": self.table.counts_by_source(made.plan),
            "lower_bound": made.lower_bound,
            "gap": made.gap,
            "exact": made.exact,
            "stages": [stage.to_json() for stage in stages],
            "cost": {
                "evaluations": sum(stage.evaluations for stage in stages),
                "block_forward_tokens": self.model.model.tokens_forwarded - before,
            },
        }
        if self.settings.stored_sizes:
            figures["avg_bits_stored"] = self._stored_bits(choice)
        return self._plan_of(choice), figures

    def _stored_bits(self, choice: Choice) -> float:
        """Return the average bits over all parameters of a choice at the table's sizes, the rest in 16."""
        rest = self.model.info.parameters - float(self.table.params.sum())
        stored = 8 * float(total_size(self.problem.choices, choice))
        return (stored + UNQUANTIZED_BITS * rest) / self.model.info.parameters

    def _damage(self, text: Reference, name: str) -> PlanDamage:
        return PlanDamage(self.model, text, self.weights, self._plan_of, kept=self.kept, text=name)

    def _improved(self, choice: Choice, budget: float) -> tuple[Choice, list[Stage]]:
        """Return the choice after the steps that fresh text confirms; each step is decided on a half of its own."""
        half = len(self.fresh.tokens) // 2
        seen = self._damage(self.calibration, "calibration")
        wanted = {
            CORRECTION: (self.settings.correct, self._correct, part_of(self.fresh, 0, half)),
            "refine": (self.settings.refine, self._refine, part_of(self.fresh, half, len(self.fresh.tokens))),
        }
        stages = []
        for name, (asked, step, text) in wanted.items():
            if asked:
                choice, stage = self._decided(name, step, choice, budget, seen, text)
                stages.append(stage)
        return choice, stages

    def _decided(
        self, name: str, step: Callable, choice: Choice, budget: float, seen: PlanDamage, text: Reference
    ) -> tuple[Choice, Stage]:
        """Return the choice after one step, or before it where fresh text does not confirm that it damages less."""
        before, counted = self.model.model.tokens_forwarded, seen.evaluations
        judge = self._damage(text, name)
        expected = self._prospect(choice, budget, seen, judge) if name == CORRECTION else None
        found = choice if expected and not expected.worthwhile else step(choice, budget, seen)
        change = difference(judge.by_window(found), judge.by_window(choice))
        kl_before = float(judge.by_window(choice).mean())
        evaluations = seen.evaluations - counted + judge.evaluations
        cost = self.model.model.tokens_forwarded - before
        stage = Stage(name, kl_before, change, change.lower, evaluations, cost, expected)
        log.info("%s: KL %+.6f (%+.6f to %+.6f) on fresh text", name, change.mean, change.low, change.high)
        return (found if stage.kept else choice), stage

    def _prospect(self, choice: Choice, budget: float, seen: PlanDamage, judge: PlanDamage) -> Prospect:
        measures = seen.by_window, judge.by_window
        return prospect(self.problem.choices, choice, budget, *measures, self.settings.swaps)

    def _correct(self, choice: Choice, budget: float, seen: PlanDamage) -> Choice:
        return corrected(self.problem.choices, choice, budget, seen.by_window, self.settings.swaps)[0]

    def _refine(self, choice: Choice, budget: float, seen: PlanDamage) -> Choice:
        return refine(
            self.problem.choices, choice, budget, seen.by_window, seen.windows, self.settings.refinement_settings
        )[0]


def summary_of(
    plan: Plan, info: ModelInfo, settings: OptimalSettings, target: float | None, figures: dict
) -> dict[str, Any]:
    """Return the plan's summary."""
    bits = average_bits(plan, info)
    wanted = {} if target is None else {"target_avg_bits": target, "target_missed_by": max(0.0, bits.avg_bits - target)}
    return {
        "method": "optimal",
        **wanted,
        "palette": list(settings.palette),
        **({"runtimes": list(settings.runtimes)} if settings.runtimes else {}),
        "avg_bits": bits.avg_bits,
        "avg_bits_layers": bits.avg_bits_layers,
        **figures,
    }


def file_budget(table: SensitivityTable, sizes: dict[str, int], source: object) -> float:
    """Return the bytes that the table's layers take in a GGUF file, `sizes` by layer. Raises `UserError` where it lacks one."""
    absent = [name for name in table.layers if name not in sizes]
    if absent:
        raise user_error(
            "GGUF-NO-TENSOR", source, f"has no tensor for {absent[0]}", "Give a GGUF file of the same model"
        )
    return float(sum(sizes[name] for name in table.layers))


def print_optimal(plan: Plan, info: ModelInfo, summary: dict[str, Any]) -> None:
    """Print what was found: bits, damage as the table has it, the bound, what each step gained."""
    counts = ", ".join(f"{number} x {form}" for form, number in plan.counts(info).items())
    stored = f", {summary['avg_bits_stored']:.4f} as stored" if "avg_bits_stored" in summary else ""
    print(f"{summary['avg_bits']:.4f} bits ({summary['avg_bits_layers']:.4f} over the layers{stored}): {counts}")
    print(
        f"sum of KL {summary['kld_predicted']:.6g}, none below {summary['lower_bound']:.6g} (gap {summary['gap']:.2g})"
    )
    for stage in summary["stages"]:
        if not stage.get("tried", True):
            gain, shown = stage["could_gain"], stage["least_shown"]
            print(
                f"{stage['stage']}: not tried; it could gain about {gain:.2g}, and {stage['windows']} fresh windows show {shown:.2g} or more"
            )
            continue
        low, high = stage["interval"]
        told = "kept" if stage["kept"] else "not kept"
        print(
            f"{stage['stage']}: KL {stage['kl_before']:.6f} {stage['kl_change']:+.6f} ({low:+.6f} to {high:+.6f}, 95 %) on {stage['windows']} fresh"
            f" windows, {told}; {stage['evaluations']} evaluations"
        )
