"""The adaptive search on a real model: alphas, perplexities by the walk, the printed result."""

import math
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.tables import Column, text_table
from bitplan.evaluate.perplexity import hidden_nll, plan_nll
from bitplan.evaluate.scores import perplexity
from bitplan.evaluate.tasks import (
    TaskSettings,
    load_tasks,
    loss_figure,
    main_metric,
    metrics_of,
    run_tasks,
    task_files,
)
from bitplan.evaluate.whole_model import open_whole_model
from bitplan.formats.base import Format
from bitplan.formats.table import FORMATS
from bitplan.models.devices import free_memory
from bitplan.models.finite import check_read
from bitplan.plans.apply import QuantizedWeights, scales_span_windows
from bitplan.plans.plan import Plan
from bitplan.reference.opening import PreparedModel, open_held_out_reference, open_reference
from bitplan.reference.reference import Reference
from bitplan.search.adaptive.algorithm import FORMAT_OF_STAGE, PERPLEXITY, AdaptiveQuantizationSearch, AdaptiveSettings
from bitplan.search.evaluations import Evaluations, facts_of, facts_of_text, key_of
from bitplan.statistics.alpha_hill import alpha_hill, spectrum
from bitplan.statistics.layer_stats import read_alphas

MOST_AT_ONCE = 8
LAYERS = (Column("layer", "layer"), Column("alpha", "alpha", "{:.3f}"), Column("format", "format", left=True))


def texts_of(args: Namespace, model: PreparedModel) -> tuple[Reference | None, Reference | None]:
    """Return the held-out text, and the one that is measured on: None where there is none. Raises `UserError`."""
    how = (model, args.length, args.sequences)
    seen = None if args.task else open_reference(args.calibration, *how)
    if args.evaluation is None:
        return None, seen
    return (
        open_reference(args.evaluation, *how) if seen is None else open_held_out_reference(args.evaluation, seen, *how)
    ), seen


def batch_of(model: PreparedModel, text: Reference) -> int:
    """Return how many windows of a text run at once: up to 8, fewer where an eighth of the free memory holds no more."""
    config, length = model.model.module.config, text.tokens.shape[1]
    wide = max(getattr(config, "intermediate_size", None) or 4 * config.hidden_size, config.hidden_size)
    heads = getattr(config, "num_attention_heads", 1)
    each = 4 * length * (3 * wide + 8 * config.hidden_size + 2 * heads * length)
    return max(1, min(MOST_AT_ONCE, free_memory() // 8 // each))


def alphas_of(model: PreparedModel, table: Path | None, fit: str) -> dict[str, float]:
    """Return {layer: alpha} of the quantizable layers, from a table or computed. Raises `UserError` for another model's table."""
    if table is None:
        return {
            layer.name: alpha_hill(spectrum(_weight(model, layer.name, layer.transposed)), fit)
            for layer in model.info.quantizable
        }
    alphas = read_alphas(table, fit)
    missing = [layer.name for layer in model.info.quantizable if layer.name not in alphas]
    if missing:
        raise user_error(
            "STATS-NO-ROW",
            table,
            f"has no row for {missing[0]}",
            "It belongs to a different model: create it with scripts/layer_stats.py",
        )
    return {layer.name: alphas[layer.name] for layer in model.info.quantizable}


def _weight(model: PreparedModel, layer: str, transposed: bool):
    read = model.checkpoint.read([f"{layer}.weight"])
    check_read(read, model.checkpoint)
    weight = read[f"{layer}.weight"]
    return weight.T if transposed else weight


@dataclass(frozen=True)
class Measure:
    """What the search holds within its limit: a figure of a plan that rises with damage, what it is called, and what else decides it."""

    figure: Callable[[Plan], float]
    name: str = PERPLEXITY
    summary: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def kept_beside(
    output: Path, measure: Measure, model: PreparedModel, weights: QuantizedWeights
) -> tuple[Measure, Evaluations]:
    """Return the measure with every figure kept beside an output as soon as it is there, and what keeps them."""
    kept = Evaluations.beside(output, {**facts_of(model, weights), "measure": measure.name, **measure.facts})

    def figure(plan: Plan) -> float:
        return kept.once(key_of(plan), model.model, lambda: [measure.figure(plan)])[0]

    return replace(measure, figure=figure), kept


def token_perplexity(model: PreparedModel, text: Reference, weights: QuantizedWeights) -> Measure:
    """Return the perplexity per token on a text, walked block by block."""

    def figure(plan: Plan) -> float:
        return perplexity(plan_nll(model.model, model.info, plan, text, weights).double().mean().item())

    return Measure(figure, summary={"bos": text.bos}, facts=facts_of_text(text))


def task_metric(model: PreparedModel, settings: TaskSettings, wanted: str | None, weights: QuantizedWeights) -> Measure:
    """Return a metric of an lm-eval task: the one wanted, or the task's usual one. Where higher is better: 1 - metric.

    Loads the whole model; walking it afterwards ends that. Raises `UserError` for an unknown task or metric.
    """
    tasks, task = load_tasks(settings), settings.tasks[0]
    rising = metrics_of(tasks, task)
    metric = main_metric(rising, task, wanted)
    loaded = open_whole_model(model.model, model.info, weights)

    def figure(plan: Plan) -> float:
        with loaded.under(plan) as module:
            row = run_tasks(tasks, module, model.checkpoint.folder, scales_span_windows(plan, weights.formats))[task]
        return loss_figure(row[metric], rising[metric])

    name = f"1 - {metric}" if rising[metric] else metric
    told = {"task": task, "metric": metric, "limit": settings.limit, "max_length": settings.max_length}
    facts = {"metric": metric, "settings": settings, "files": task_files(settings)}
    return Measure(figure, f"{task} {name}", {"evaluated_on": told}, facts)


def held_out(
    model: PreparedModel, evaluation: Reference | None, plan: Plan, weights: QuantizedWeights
) -> dict[str, float]:
    """Return perplexity on held-out text, of the model and of the plan found; nothing without a text."""
    if evaluation is None:
        return {}
    base_nll = hidden_nll(evaluation.tokens, evaluation.hidden, evaluation.head.read(model.model.device))
    base = perplexity(base_nll.double().mean().item())
    found = token_perplexity(model, evaluation, weights).figure(plan)
    return {"evaluation_base_ppl": base, "evaluation_ppl": found}


def search(
    model: PreparedModel,
    alphas: Mapping[str, float],
    measure: Measure,
    settings: AdaptiveSettings,
    bit_mapping: Sequence[str] = FORMAT_OF_STAGE,
    strategy: type[AdaptiveQuantizationSearch] = AdaptiveQuantizationSearch,
    formats: Mapping[str, Format] = FORMATS,
) -> Plan:
    """Return the plan found within the limit on `measure`; its summary has what was measured and what that cost."""
    before = model.model.tokens_forwarded
    found = strategy(model.info, alphas, measure.figure, settings, tuple(bit_mapping), formats, measure.name)
    plan = found.run()
    forwarded = model.model.tokens_forwarded - before
    cost = {**plan.summary["cost"], "block_forward_tokens": forwarded}
    return replace(plan, summary={**plan.summary, "measure": measure.name, **measure.summary, "cost": cost})


def print_result(plan: Plan, alphas: Mapping[str, float]) -> None:
    """Print the layers by falling alpha with their formats, then thresholds and figures."""
    summary = plan.summary
    names = sorted(alphas, key=lambda name: -alphas[name] if alphas[name] == alphas[name] else math.inf)
    rows = [{"layer": name, "alpha": alphas[name], "format": plan.of(name).wq} for name in names]
    print(text_table(rows, LAYERS))
    thresholds = {key.removesuffix("_threshold"): summary[key] for key in summary if key.endswith("_threshold")}
    thresholds.pop("ppl")
    told = (
        f"{form} threshold {'none' if t is None else f'{t:.3f}'} (stopped at: {summary['stopped'][form]})"
        for form, t in thresholds.items()
    )
    print("\n" + ", ".join(told))
    print(
        f"{summary['measure']} {summary['base_ppl']:.4f} -> {summary['ppl']:.4f} ({100 * summary['ppl_increase']:+.2f} %, limit {100 * summary['ppl_threshold']:g} %)"
    )
    print(
        f"average bits {summary['avg_bits']:.3f} over all parameters, {summary['avg_bits_layers']:.3f} over the layers"
    )
    reached = "reached" if summary["target_reached"] else f"missed by {summary['target_missed_by']:.3f} bits"
    print(
        f"target of {summary['target_avg_bits']:g} average bits: {reached}; {summary['cost']['evaluations']} plans evaluated"
    )
