"""The average bits of a plan: figures, layer table, distribution of formats, and the check of the target."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.files import check_gguf, read_json
from bitplan.models.layer_patterns import match_layers
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import Plan, average_bits, layer_bits

log = logging.getLogger(__name__)
BAR = 40


class TargetMissed(Enum):
    """What to do if the plan exceeds its target."""

    FAIL = "fail"
    WARN = "warn"


def _layer_rows(plan: Plan, info: ModelInfo) -> list[dict[str, Any]]:
    rows = []
    for layer in info.layers:
        choice = plan.of(layer.name)
        bits = 0.0 if layer.tied else layer_bits(layer, choice)
        rows.append(
            {
                "layer": layer.name,
                "category": layer.category,
                "shape": f"{layer.shape[0]}x{layer.shape[1]}",
                "params": 0 if layer.tied else layer.params,
                "wq": choice.wq,
                "aq": choice.aq,
                "group_size": choice.group_size if choice.quantized else "",
                "bits_per_weight": 0.0 if layer.tied else bits / layer.params,
                "bytes": bits / 8,
            }
        )
    return rows


def _distribution(rows: list[dict[str, Any]], parameters: int) -> dict[str, dict[str, float]]:
    """Return for each weight format the number of layers, their parameters and their share of the model's parameters."""
    totals: dict[str, dict[str, float]] = defaultdict(lambda: {"layers": 0, "params": 0})
    for row in rows:
        totals[row["wq"]]["layers"] += 1
        totals[row["wq"]]["params"] += row["params"]
    return {form: {**part, "share": part["params"] / parameters} for form, part in totals.items()}


def pattern_counts(config: Path, info: ModelInfo) -> list[dict[str, Any]]:
    """Return for each override whose pattern is not a full layer name: pattern, number of matching layers and of protected ones.

    Empty for a torch configuration, which has no patterns.
    """
    if config.suffix == ".pt":
        return []
    names = [layer.name for layer in info.layers]
    patterns = dict.fromkeys(entry["pattern"] for entry in read_json(config).get("overrides", []))
    places = {pattern: match_layers(pattern, names) for pattern in patterns if pattern not in set(names)}
    return [
        {
            "pattern": pattern,
            "layers": len(matches),
            "protected": sum(info.layers[place].protected for place in matches),
        }
        for pattern, matches in places.items()
    ]


def bits_report(
    plan: Plan, info: ModelInfo, gguf: Path | None, target: float | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the content of bits.json and the layer table. `avg_bits_file` is None if `gguf` is None."""
    rows, bits = _layer_rows(plan, info), average_bits(plan, info)
    target_bits = target if target is not None else plan.summary.get("target_avg_bits")
    if gguf is not None:
        check_gguf(gguf)
    report = {
        "parameters": info.parameters,
        "avg_bits": bits.avg_bits,
        "avg_bits_layers": bits.avg_bits_layers,
        "avg_bits_file": None if gguf is None else 8 * gguf.stat().st_size / info.parameters,
        "target_avg_bits": target_bits,
        "target_missed_by": None if target_bits is None else max(0.0, bits.avg_bits - target_bits),
        "distribution": _distribution([row for row in rows if row["params"]], info.parameters),
    }
    return report, rows


def _print_patterns(patterns: Iterable[Mapping[str, Any]]) -> None:
    lines = [
        f"pattern {each['pattern']!r} matches {each['layers']} layers"
        + (f"; {each['protected']} of them are protected" if each["protected"] else "")
        for each in patterns
    ]
    print("\n".join(("", *lines))) if lines else None


def print_report(report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print the layer table, the distribution as bars, and the average bits."""
    print(f"{'layer':<44} {'shape':>13} {'params':>12} {'weights':>10} {'inputs':>8} {'bits':>7}")
    for row in rows:
        print(
            f"{row['layer']:<44} {row['shape']:>13} {row['params']:>12,} {row['wq']:>10} {row['aq']:>8} {row['bits_per_weight']:>7.3f}"
        )
    _print_patterns(report.get("patterns", ()))
    print("\nformat       layers       params   share of the parameters")
    for form, part in sorted(report["distribution"].items(), key=lambda item: -item[1]["params"]):
        print(
            f"{form:<10} {part['layers']:>8} {part['params']:>12,}   {100 * part['share']:5.1f} % {'#' * round(BAR * part['share'])}"
        )
    print(f"\navg_bits         {report['avg_bits']:.4f}  over all {report['parameters']:,} parameters, each once")
    print(f"avg_bits_layers  {report['avg_bits_layers']:.4f}  over the quantizable layers")
    if report["avg_bits_file"] is not None:
        print(f"avg_bits_file    {report['avg_bits_file']:.4f}  of the GGUF file")


def check_target(report: dict[str, Any], config: Path, on_miss: TargetMissed, tolerance: float) -> None:
    """Raise `UserError`, or warn, if the plan's average bits exceed its target by more than the tolerance."""
    missed = report["target_missed_by"]
    if missed is None or missed <= tolerance + 1e-9:
        return
    what = f"has {report['avg_bits']:.4f} average bits, {missed:.4f} over its target of {report['target_avg_bits']:g}"
    if on_miss is TargetMissed.FAIL:
        raise user_error(config, what, "Raise the target or the limit on perplexity, or set on_miss: warn")
    log.warning("%s %s", config, what)
