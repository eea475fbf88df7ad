"""The adaptive search on a real model: alphas, perplexities by the walk, the printed result."""

import math
from collections.abc import Mapping
from pathlib import Path

from bitplan.errors import user_error
from bitplan.evaluate.perplexity import hidden_nll, plan_nll
from bitplan.evaluate.teacher import Teacher
from bitplan.opening import Opened
from bitplan.plan import Plan
from bitplan.quantized_walk import QuantizedWeights
from bitplan.search.adaptive import AdaptiveQuantizationSearch, AdaptiveSettings
from bitplan.statistics.alpha_hill import alpha_hill, spectrum
from bitplan.statistics.table import read_alphas


def alphas_of(model: Opened, table: Path | None, fit: str) -> dict[str, float]:
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
            table, f"has no row for {missing[0]}", "It belongs to another model: make it with scripts/layer_stats.py"
        )
    return {layer.name: alphas[layer.name] for layer in model.info.quantizable}


def _weight(model: Opened, layer: str, transposed: bool):
    weight = model.checkpoint.read([f"{layer}.weight"])[f"{layer}.weight"]
    return weight.T if transposed else weight


def search(
    model: Opened,
    alphas: Mapping[str, float],
    calibration: Teacher,
    evaluation: Teacher | None,
    settings: AdaptiveSettings,
) -> Plan:
    """Return the plan found on the calibration text; its summary has the perplexity on held-out text where there is one."""
    weights = QuantizedWeights()

    def ppl_on(teacher: Teacher):
        return lambda plan: math.exp(plan_nll(model.model, model.info, plan, teacher, weights).double().mean().item())

    before = model.model.tokens_forwarded
    plan = AdaptiveQuantizationSearch(model.info, alphas, ppl_on(calibration), settings).run()
    cost = {
        **plan.summary["cost"],
        "block_forward_tokens": model.model.tokens_forwarded - before,
        "quantizations": weights.made,
    }
    held_out = {}
    if evaluation is not None:
        whole = math.exp(hidden_nll(evaluation, evaluation.hidden).double().mean().item())
        held_out = {"evaluation_base_ppl": whole, "evaluation_ppl": ppl_on(evaluation)(plan)}
    return Plan(plan.layers, {**plan.summary, "cost": cost, **held_out})


def print_result(plan: Plan, alphas: Mapping[str, float]) -> None:
    """Print the layers by falling alpha with their formats, then thresholds and figures."""
    summary = plan.summary
    print(f"{'layer':<44} {'alpha':>8}  format")
    for name in sorted(alphas, key=lambda name: -alphas[name] if alphas[name] == alphas[name] else math.inf):
        print(f"{name:<44} {alphas[name]:>8.3f}  {plan.of(name).wq}")
    thresholds = {key.removesuffix("_threshold"): summary[key] for key in summary if key.endswith("_threshold")}
    thresholds.pop("ppl")
    print("\n" + ", ".join(f"{form} threshold {'none' if t is None else f'{t:.3f}'}" for form, t in thresholds.items()))
    print(
        f"perplexity {summary['base_ppl']:.4f} -> {summary['ppl']:.4f} ({100 * summary['ppl_increase']:+.2f} %, limit {100 * summary['ppl_threshold']:g} %)"
    )
    print(
        f"average bits {summary['avg_bits']:.3f} over all parameters, {summary['avg_bits_layers']:.3f} over the layers"
    )
    reached = "reached" if summary["target_reached"] else f"missed by {summary['target_missed_by']:.3f} bits"
    print(
        f"target of {summary['target_avg_bits']:g} average bits: {reached}; {summary['cost']['evaluations']} plans evaluated"
    )
