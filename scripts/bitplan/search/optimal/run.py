"""The optimal search on a model: exact allocation from a measured table, then correction and refinement, each kept only if fresh text confirms it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitplan.core.errors import Problem, UserError, user_error
from bitplan.formats.facts import GGUF_TYPES
from bitplan.formats.fitting import fitting_format, fitting_formats
from bitplan.formats.pairs import parse_pair
from bitplan.models.families import merged_name
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.fitting import substitute_note
from bitplan.plans.plan import UNQUANTIZED_BITS, LayerPlan, Plan, average_bits
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import Reference
from bitplan.search.allocation.constraints import Constraints
from bitplan.search.allocation.problem import BYTES, AllocationProblem, Target, allocate, allocation_problem, reach
from bitplan.search.damage import PlanDamage, part_of
from bitplan.search.evaluations import Evaluations
from bitplan.search.knapsack.choices import as_choice
from bitplan.search.optimal.correction import corrected
from bitplan.search.optimal.paired import Difference, difference
from bitplan.search.optimal.refinement import RefinementSettings, refine
from bitplan.sensitivity.table import SensitivityTable, check_known

log = logging.getLogger(__name__)
FEWEST_WINDOWS = 4
GROUPS = ("experts", "fusion", "none")

Choice = NDArray[np.intp]


@dataclass(frozen=True)
class OptimalSettings:
    """Which steps are taken after the exact solution: `correct` measures up to `swaps` steps in place, `refine` swaps at one size.

    `groups` says what shares a format: the experts of a projection (a GGUF's tensors), fusion groups (q, k and v; gate and up), nothing;
    None: experts where the palette is of GGUF types, fusion groups elsewhere.
    """

    palette: tuple[str, ...]
    correct: bool = True
    refine: bool = False
    swaps: int = 24
    groups: str | None = None
    refinement_settings: RefinementSettings = field(default_factory=RefinementSettings)

    def groups_of(self, info: ModelInfo, layers: Sequence[str]) -> tuple[str, ...]:
        """Return the group of each layer of a table, "" for a layer alone."""
        kind = self.groups or ("experts" if set(self.palette) <= set(GGUF_TYPES) else "fusion")
        known = {layer.name: layer for layer in info.layers}
        chosen = (known.get(name) for name in layers)
        return tuple(
            layer.fusion_group if layer and (kind == "fusion" or _is_merged(layer, kind)) else "" for layer in chosen
        )


def _is_merged(layer: Layer, kind: str) -> bool:
    """Return whether layers that a file stores as one tensor are a group, and this is one of them; a shared expert is not."""
    return kind == "experts" and layer.fusion_group == merged_name(layer.name)


@dataclass(frozen=True)
class Stage:
    """What a step of the search gave: KL of its plan against the one before on fresh text, whether it was kept, what it cost."""

    name: str
    kl_before: float
    change: Difference
    kept: bool
    evaluations: int
    block_forward_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return the stage for a plan's summary."""
        return {
            "stage": self.name,
            "kl_before": self.kl_before,
            "kl_change": self.change.mean,
            "interval": [self.change.low, self.change.high],
            "windows": self.change.windows,
            "kept": self.kept,
            "evaluations": self.evaluations,
            "block_forward_tokens": self.block_forward_tokens,
        }


def chosen_table(table: SensitivityTable, palette: Sequence[str], info: ModelInfo, source: object) -> SensitivityTable:
    """Return the table's palette for the layers of the model, each with the formats of it that fit its rows.

    Layers outside the blocks have all that was measured for them. Raises `UserError` where a format or a layer is absent.
    """
    columns = {layer.name: layer.shape[1] for layer in info.quantizable}
    own = {name: fitting_formats(palette, length) for name, length in columns.items()}
    problems = [
        Problem(f"--palette {form}", f"is not measured in {source}", f"It has {', '.join(table.formats)}")
        for form in palette
        if all(fitting_format(form, length) not in table.formats for length in columns.values())
    ]
    absent = [name for name in columns if name not in table.layers]
    if absent:
        problems.append(
            Problem(str(source), f"has no rows for {absent[0]}", "Make it again with scripts/sensitivity.py")
        )
    if problems:
        raise UserError(problems)
    check_known(table.layers, info, source)
    may = np.array([[name not in own or form in own[name] for form in table.formats] for name in table.layers])
    return table.limited(may, (*palette, *(form for forms in own.values() for form in forms)))


def layer_budget(target_avg_bits: float, table: SensitivityTable, info: ModelInfo) -> float:
    """Return the bytes that the table's layers may take when all parameters are to average so many bits; the rest has 16."""
    rest = info.parameters - float(table.params.sum())
    return (target_avg_bits * info.parameters - UNQUANTIZED_BITS * rest) / 8


def plan_maker(problem: AllocationProblem, info: ModelInfo, palette: Sequence[str] = ()) -> Callable[[Choice], Plan]:
    """Return the function that makes the plan of a choice (units,); it notes which formats of the palette a substitute stands for."""
    outside = {layer.name for layer in info.layers if layer.protected}

    def plan_of(choice: Choice) -> Plan:
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
        return Plan(layers)

    return plan_of


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
        if self._steps and (self.fresh is None or len(self.fresh.tokens) < FEWEST_WINDOWS):
            what = f"correction and refinement are decided on it, and it has fewer than {FEWEST_WINDOWS} windows"
            raise user_error("--validation", what, "Give more text, or --no-correct and --no-refine")

    @property
    def _steps(self) -> bool:
        return self.settings.correct or self.settings.refine

    def budget(self, target_avg_bits: float) -> float:
        """Return the budget of a target in bytes. Raises `UserError` naming what can be reached."""
        info, low = self.model.info, reach(self.problem)[BYTES][0]
        budget = layer_budget(target_avg_bits, self.table, info)
        if budget < low * (1 - 1e-9):
            ends = [target_avg_bits + 8 * (end - budget) / info.parameters for end in reach(self.problem)[BYTES]]
            hint = f"The palette reaches {np.ceil(1e4 * ends[0]) / 1e4:.4f} to {ends[1]:.4f}: give one from there"
            raise user_error("--target-avg-bits", f"no choice is within {target_avg_bits:g}", hint)
        return budget

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
        return self._plan_of(choice), figures

    def _damage(self, text: Reference, name: str) -> PlanDamage:
        return PlanDamage(self.model, text, self.weights, self._plan_of, kept=self.kept, text=name)

    def _improved(self, choice: Choice, budget: float) -> tuple[Choice, list[Stage]]:
        """Return the choice after the steps that fresh text confirms; each step is decided on a half of its own."""
        half = len(self.fresh.tokens) // 2
        seen = self._damage(self.calibration, "calibration")
        wanted = {
            "correction": (self.settings.correct, self._correct, part_of(self.fresh, 0, half)),
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
        found = step(choice, budget, seen)
        judge = self._damage(text, name)
        change = difference(judge.by_window(found), judge.by_window(choice))
        kl_before = float(judge.by_window(choice).mean())
        evaluations = seen.evaluations - counted + judge.evaluations
        stage = Stage(name, kl_before, change, change.lower, evaluations, self.model.model.tokens_forwarded - before)
        log.info("%s: KL %+.6f (%+.6f to %+.6f) on fresh text", name, change.mean, change.low, change.high)
        return (found if stage.kept else choice), stage

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
        "avg_bits": bits.avg_bits,
        "avg_bits_layers": bits.avg_bits_layers,
        **figures,
    }


def file_budget(table: SensitivityTable, sizes: dict[str, int], source: object) -> float:
    """Return the bytes that the table's layers take in a GGUF file, `sizes` by layer. Raises `UserError` where it lacks one."""
    absent = [name for name in table.layers if name not in sizes]
    if absent:
        raise user_error(source, f"has no tensor for {absent[0]}", "Give a GGUF of the same model")
    return float(sum(sizes[name] for name in table.layers))


def print_optimal(plan: Plan, info: ModelInfo, summary: dict[str, Any]) -> None:
    """Print what was found: bits, damage as the table has it, the bound, what each step gained."""
    counts = ", ".join(f"{number} x {form}" for form, number in plan.counts(info).items())
    print(f"{summary['avg_bits']:.4f} bits ({summary['avg_bits_layers']:.4f} over the layers): {counts}")
    print(
        f"sum of KL {summary['kld_predicted']:.6g}, none below {summary['lower_bound']:.6g} (gap {summary['gap']:.2g})"
    )
    for stage in summary["stages"]:
        low, high = stage["interval"]
        told = "kept" if stage["kept"] else "not kept"
        print(
            f"{stage['stage']}: KL {stage['kl_before']:.6f} {stage['kl_change']:+.6f} ({low:+.6f} to {high:+.6f}, 95 %) on {stage['windows']} fresh"
            f" windows, {told}; {stage['evaluations']} evaluations"
        )
