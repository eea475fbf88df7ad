"""The genetic search on a model: W4 with A4 or A8 under a compression, or any palette under average bits, from a sensitivity table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from bitplan.core.errors import UserError, user_error
from bitplan.core.tables import Column, text_table
from bitplan.formats.fitting import fitting_formats
from bitplan.formats.pairs import parse_pair
from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.fitting import substitute_note
from bitplan.plans.plan import UNQUANTIZED_BITS, LayerPlan, Plan, average_bits
from bitplan.plans.smoothing import Smoothing
from bitplan.search.genetic.algorithm import GeneticResult, GeneticSettings, gap_to_optimal, search
from bitplan.search.genetic.rows import Sensitivity, row_key
from bitplan.search.knapsack.choices import Choices, as_choice, total_damage, total_size, weighted
from bitplan.search.knapsack.exact import Solution, optimal
from bitplan.search.reach import average_bits_reach, below_reach
from bitplan.sensitivity.local_errors import (
    ACTIVATION_BITS,
    EDGE_LAYERS,
    activation_choices,
    choice_named,
    classes,
    sensitivity_ratio,
)
from bitplan.sensitivity.table import check_known, figure_of, tell_unreached

EDGE_BOOST = 1.5
# (4 + mean activation bits) / 12: all A4 0.667, all A8 1.
COMPRESSION_UNIT = 12
AUTO = "auto"
LAYERS = (
    *(Column("layer", "layer"), Column("ratio", "ratio", "{:.2f}"), Column("class", "class")),
    Column("weight", "weight", "{:.3f}"),
    *(Column("wq", "weights", left=True), Column("aq", "inputs", left=True)),
)
METRICS = ("mse", "relative_mse", "weighted_error", "kld")


@dataclass(frozen=True)
class Target:
    """What bounds the size: `compression`, (4 + mean activation bits) / 12, or `avg_bits` over all parameters with a `palette`.

    A `compression` of None leaves it to the labels: A8 for layers of high sensitivity, A4 for the others.
    """

    compression: float | None = 0.75
    avg_bits: float | None = None
    palette: tuple[str, ...] = ()
    metric: str = "mse"

    def check(self) -> None:
        """Raise `UserError` unless average bits and a palette of known formats come together, or the compression is in reach."""
        for name in self.palette:
            choice_named(name)
        if bool(self.palette) != (self.avg_bits is not None):
            hint = "Give both for weight formats, or neither for W4 with A4 or A8"
            raise user_error("GENETIC-BAD-FLAGS", "--palette and --target-avg-bits", "must be given together", hint)
        if self.avg_bits is None and self.metric == "weighted_error":
            what = "weighted_error depends on weights only and cannot distinguish A4 from A8"
            raise user_error("GENETIC-BAD-FLAGS", "--metric", what, "Use mse or relative_mse, or give a palette")
        if self.avg_bits is None and self.compression is not None:
            low, high = (compression(bits) for bits in ACTIVATION_BITS)
            _refuse_below(low, high, self.compression, "--target_compression")

    @property
    def by_labels(self) -> bool:
        """Whether the labels decide which layers have A8."""
        return self.avg_bits is None and self.compression is None

    @property
    def with_inputs(self) -> tuple[str, ...]:
        """The candidates of the palette that quantize inputs too: a plan that chooses these by layer has no smoothing factors."""
        return tuple(name for name in self.palette if choice_named(name).inputs_change)

    def check_smoothing(self, alphas: Sequence[float] | None) -> None:
        """Raise `UserError` where inputs are to be smoothed and the palette chooses them by layer."""
        if alphas and self.with_inputs:
            what = f"smooths inputs, and a plan that may choose {self.with_inputs[0]} has no smoothing factors"
            raise user_error(
                "GENETIC-BAD-FLAGS", "--smooth-alpha", what, "Leave it out, or choose among formats of weights alone"
            )

    def check_for(self, info: ModelInfo) -> None:
        """Raise `UserError` unless some choice of the model's layers is within the target."""
        self.check()
        if self.avg_bits is None:
            return
        _refuse_below(*average_bits_reach(info, self.palette), self.avg_bits, "--target-avg-bits")


def _refuse_below(low: float, high: float, target: float, flag: str) -> None:
    """Raise `UserError` for a target below what can be reached, naming the range of it."""
    if wrong := below_reach(low, high, target, flag):
        raise UserError([wrong])


def compression(activation_bits: float) -> float:
    """Return (4 + mean activation bits) / 12."""
    return (4 + activation_bits) / COMPRESSION_UNIT


def layer_plan(name: str) -> LayerPlan:
    """Return the plan of a layer that has a palette's candidate."""
    return LayerPlan(*astuple(parse_pair(name)))


def ratios_of(table: Sensitivity, layers: Sequence[str], scope: str) -> list[float]:
    """Return MSE(W4A4) / MSE(W4A8) of each layer."""
    both = [[(c.wq, c.aq) for c in activation_choices(scope)] for _ in layers]
    return [
        sensitivity_ratio(*(table.value(name, choice, "mse") for choice in pair))
        for name, pair in zip(layers, both, strict=True)
    ]


def importance_of(ratios: Sequence[float]) -> np.ndarray:
    """Return w = 0.5 + 1.5 minmax(log1p(ratio x (1.5 at the edges))) of each layer, (L,) in [0.5, 2]."""
    edge = [i < EDGE_LAYERS or i >= len(ratios) - EDGE_LAYERS for i in range(len(ratios))]
    finite = np.nan_to_num(np.asarray(ratios, dtype=np.float64), posinf=np.finfo(np.float32).max)
    scores = np.log1p(finite * np.where(edge, EDGE_BOOST, 1.0))
    spread = scores.max() - scores.min()
    return 0.5 + 1.5 * ((scores - scores.min()) / spread if spread > 0 else np.zeros_like(scores))


def activation_table(table: Sensitivity, layers: Sequence[str], scope: str, metric: str) -> Choices:
    """Return the choices A4 and A8 of each layer: their error, and their activation bits as size."""
    pair = [(c.wq, c.aq) for c in activation_choices(scope)]
    damage = [[table.value(name, choice, metric) for choice in pair] for name in layers]
    return Choices(
        tuple(layers), ("A4", "A8"), np.asarray(damage), np.tile(np.asarray(ACTIVATION_BITS), (len(layers), 1))
    )


def palette_table(table: Sensitivity, layers: Sequence[Layer], palette: Sequence[str], metric: str) -> Choices:
    """Return the choices of candidates of each layer, those of the palette that fit its rows: their error, stored bits as size."""
    own = [fitting_formats(palette, layer.shape[1]) for layer in layers]
    options = tuple(dict.fromkeys(form for forms in (palette, *own) for form in forms))
    options = tuple(form for form in options if any(form in forms for forms in own))
    table.check_unsmoothed([row_key(form) for form in options])
    damage, size = (np.full((len(layers), len(options)), fill) for fill in (np.inf, 0.0))
    for i, (layer, forms) in enumerate(zip(layers, own, strict=True)):
        for form in forms:
            k, choice = options.index(form), row_key(form)
            damage[i, k], size[i, k] = table.value(layer.name, choice, metric), table.size(layer.name, choice)
    return Choices(tuple(layer.name for layer in layers), options, damage, size)


@dataclass(frozen=True)
class Found:
    """What the searches found: the genetic result, the exact one beside it, the tables and weights they searched."""

    result: GeneticResult
    exact: Solution
    choices: Choices
    importance: np.ndarray
    ratios: tuple[float, ...]
    labels: tuple[str, ...]
    groups: tuple[int, ...]
    labelled: np.ndarray | None = None


def budget_of(target: Target, info: ModelInfo) -> float:
    """Return the bound on the sum of sizes: activation bits, or bits of the quantizable layers."""
    if target.avg_bits is None:
        return (COMPRESSION_UNIT * target.compression - 4) * len(info.quantizable)
    inside = sum(layer.params for layer in info.quantizable)
    return target.avg_bits * info.parameters - UNQUANTIZED_BITS * (info.parameters - inside)


def find(table: Sensitivity, info: ModelInfo, target: Target, scope: str, settings: GeneticSettings) -> Found:
    """Return the genetic and the exact choice under a target. Raises `UserError` for a target out of reach."""
    target.check_for(info)
    table.check(target.metric)
    layers = [layer.name for layer in info.quantizable]
    ratios = ratios_of(table, layers, scope)
    check_known(table.rows, info, table.source)
    tell_unreached(
        name for name in layers if any(figure_of(None, row.get("tokens")) == 0 for row in table.rows[name].values())
    )
    importance, labels = importance_of(ratios), classes(ratios)
    if target.avg_bits is None:
        plain, seeds = activation_table(table, layers, scope, target.metric), []
        seeds = [as_choice(plain, ["A8" if label == "high" else "A4" for label in labels])]
    else:
        plain, seeds = palette_table(table, info.quantizable, target.palette, target.metric), []
    choices = weighted(plain, importance)
    labelled = seeds[0] if target.by_labels else None
    budget = budget_of(target, info) if labelled is None else float(total_size(choices, labelled))
    result = search(choices, budget, settings, importance, ratios, seeds)
    w4 = activation_choices(scope)[0]
    groups = tuple(table.group_size(name, (w4.wq, w4.aq)) for name in layers)
    return Found(result, optimal(choices, budget), choices, importance, tuple(ratios), tuple(labels), groups, labelled)


def plan_of(
    found: Found, choice: np.ndarray, info: ModelInfo, target: Target, scope: str, smoothing: Smoothing | None
) -> Plan:
    """Return the plan of a choice vector (L,): W4 with A4 or A8 under smoothing, or the formats of a palette."""
    options = [found.choices.options[k] for k in choice]
    layers = {layer.name: LayerPlan(notes={"category": layer.category}) for layer in info.layers}
    for layer, option, group in zip(info.quantizable, options, found.groups, strict=True):
        notes = {"category": layer.category, **substitute_note(target.palette, option, layer)}
        both = dict(zip(("A4", "A8"), activation_choices(scope, group), strict=True))
        made = both.get(option) or choice_named(option)
        layers[layer.name] = LayerPlan(made.wq, made.aq, made.group_size, notes)
    return Plan(layers, smoothing=smoothing if smoothing and smoothing.groups and target.avg_bits is None else None)


def compression_of(plan: Plan, info: ModelInfo) -> float:
    """Return (4 + mean activation bits) / 12 over the quantizable layers; whole activations count 16 bits."""
    bits = [FORMATS[plan.of(layer.name).aq].element_bits for layer in info.quantizable]
    return compression(sum(bits) / len(bits))


def summary_of(found: Found, plan: Plan, info: ModelInfo, target: Target, settings: GeneticSettings) -> dict[str, Any]:
    """Return the plan's summary: what was searched, what was found, the exact optimum and the gap to it, the history."""
    bits, result, exact = average_bits(plan, info), found.result, found.exact
    palette = {"palette": list(target.palette), "target_avg_bits": target.avg_bits}
    asked = AUTO if target.by_labels else target.compression
    sizes = {"target_compression": asked} if target.avg_bits is None else palette
    reached = {"compression": compression_of(plan, info)} if target.avg_bits is None else {}
    missed = 0.0 if target.avg_bits is None else max(0.0, bits.avg_bits - target.avg_bits)
    return {
        "method": "genetic",
        **sizes,
        **reached,
        "target_missed_by": missed,
        "metric": target.metric,
        "population": settings.population,
        "generations": settings.generations,
        "seed": settings.seed,
        "avg_bits": bits.avg_bits,
        "avg_bits_layers": bits.avg_bits_layers,
        "fitness": -result.damage,
        **_labels_summary(found),
        "exact_fitness": -exact.damage,
        "gap": gap_to_optimal(result, exact),
        "exact_is_proven": exact.exact,
        "high_sensitivity_layers": found.labels.count("high"),
        "stopped_early": result.stopped_early,
        "history": list(result.history),
        "cost": {"evaluations": result.evaluations, "block_forward_tokens": 0},
    }


def _labels_summary(found: Found) -> dict[str, Any]:
    """Return what the plan of the labels gives where they decide: its fitness, which the others are searched for at the same size."""
    return {} if found.labelled is None else {"labels_fitness": -float(total_damage(found.choices, found.labelled))}


def genetic_plan(
    table: Sensitivity,
    smoothing: Smoothing | None,
    info: ModelInfo,
    target: Target,
    scope: str,
    settings: GeneticSettings,
    use_exact: bool = False,
) -> tuple[Plan, Found]:
    """Return the plan found, with its summary, and everything it was found with.

    `use_exact` takes the exact choice instead of the genetic one; where the labels decide, theirs is taken.
    """
    found = find(table, info, target, scope, settings)
    solutions = {"labels": found.labelled, "exact": found.exact.choice, "genetic": found.result.choice}
    named = "labels" if target.by_labels else "exact" if use_exact else "genetic"
    choice = solutions[named]
    plan = plan_of(found, choice, info, target, scope, smoothing)
    summary = summary_of(found, plan, info, target, settings)
    sources = {"kld_from": table.sources(plan, info)} if target.metric == "kld" else {}
    return replace(plan, summary={**summary, **sources, "solution": named}), found


def _compression_line(summary: Mapping[str, Any], plan: Plan, found: Found, info: ModelInfo) -> str:
    """Return what decided the activation bits, the labels or the compression, and how the two differ."""
    reached, eight = f"compression {summary['compression']:.4f}", activation_choices("tensor")[1].aq.split("_")[0]
    if found.labelled is not None:
        return f"{reached}: the labels decide, high is A8 and low is A4"
    has_eight = [plan.of(layer.name).aq.startswith(eight) for layer in info.quantizable]
    both = list(zip(found.labels, has_eight, strict=True))
    apart = f"{both.count(('high', False))} high layers have A4, {both.count(('low', True))} low ones A8"
    held = f"{reached}, target {summary['target_compression']:g}: held"
    return f"{held}. It decides, not the labels: {apart}; --target_compression {AUTO} lets the labels decide"


def _layer_rows(plan: Plan, found: Found, info: ModelInfo) -> list[dict[str, Any]]:
    return [
        {
            "layer": layer.name,
            "ratio": found.ratios[i] if math.isfinite(found.ratios[i]) else None,
            "class": found.labels[i],
            "weight": found.importance[i],
            "wq": plan.of(layer.name).wq,
            "aq": plan.of(layer.name).aq,
        }
        for i, layer in enumerate(info.quantizable)
    ]


def print_result(plan: Plan, found: Found, info: ModelInfo) -> None:
    """Print the sensitivity of every layer with its choice, then size, fitness and the gap to the exact optimum."""
    summary = plan.summary
    print(text_table(_layer_rows(plan, found, info), LAYERS))
    if "compression" in summary:
        eight = sum(FORMATS[plan.of(layer.name).aq].element_bits == 8 for layer in info.quantizable)
        print(f"\nA4: {len(info.quantizable) - eight} layers, A8: {eight} layers")
        print(_compression_line(summary, plan, found, info))
    else:
        print(f"\naverage bits {summary['avg_bits']:.4f}, target {summary['target_avg_bits']:g}: held")
    print(
        f"fitness {summary['fitness']:.6g}, exact optimum {summary['exact_fitness']:.6g}, gap {100 * summary['gap']:.4f} %"
        f" after {len(summary['history']) - 1} generations of {summary['population']}"
    )
