"""What a checkpoint of packed tensors holds of its plan."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitplan.plans.plan import Plan
from bitplan.runtimes.fusion import FusionGroup, Judge
from bitplan.runtimes.runtime import ExportJob


def report_of(
    judge: Judge, job: ExportJob, plan: Plan, repairs: Sequence[FusionGroup], codes: Mapping[str, int], size: int
) -> dict[str, Any]:
    """Return the content of report.json: every layer, the bytes of the weight files, and what is not as the plan has it."""
    asked = job.plan
    layers = [
        {
            "layer": layer.name,
            "asked": asked.of(layer.name).wq,
            "asked_activations": asked.of(layer.name).aq,
            "written": plan.of(layer.name).wq,
            "status": verdict.status,
            "stored": verdict.stored_type,
            "stored_bits": verdict.stored_bits,
            "why": verdict.reason,
        }
        for layer in job.info.quantizable
        for verdict in [judge(layer, plan.of(layer.name), job.info)]
    ]
    return {
        "file_bytes": size,
        "avg_bits_file": 8 * size / job.info.parameters,
        "parameters": job.info.parameters,
        "types": dict(Counter(row["stored"] for row in layers)),
        "differences": sum(row["status"] == "approximate" or row["asked"] != row["written"] for row in layers),
        "fusion": [{"group": each.name, "asked": each.summary, "extra_bits": each.extra_bits} for each in repairs],
        "rounded": dict(codes) if asked.rounded else None,
        "smoothing": _smoothing(asked),
        "layers": layers,
    }


def _smoothing(plan: Plan) -> dict[str, Any] | None:
    """Return what of a plan's smoothing is folded into norms, and the layers whose input would have to be divided."""
    if plan.smoothing is None:
        return None
    rest = sorted(layer for group in plan.smoothing.groups if not group.norm for layer in group.layers)
    return {"folded": len(plan.smoothing.folded.groups), "not_stored": rest}


def print_report(runtime: str, output: Path, report: Mapping[str, Any]) -> None:
    """Print size and types of an exported checkpoint, and what it does not hold as the plan has it."""
    print(f"{output}: {report['file_bytes']:,} bytes of weights, {report['avg_bits_file']:.3f} bits per parameter")
    print(", ".join(f"{number} x {kind}" for kind, number in sorted(report["types"].items())))
    if report["fusion"]:
        extra = sum(each["extra_bits"] for each in report["fusion"]) / 8
        number = len(report["fusion"])
        print(
            f"{number} groups of layers that {runtime} stores as one had unlike formats: the widest for all costs {extra:,.0f} bytes"
        )
        print(f"  first: {report['fusion'][0]['group']}: {report['fusion'][0]['asked']}")
    if report["smoothing"]:
        rest = f"the inputs of {len(report['smoothing']['not_stored'])} layers are not divided, and their weights stored unsmoothed"
        print(f"smoothing: {report['smoothing']['folded']} norms folded; {rest}")
    if report["rounded"]:
        print(f"rounded layers: {', '.join(f'{number} {kind}' for kind, number in sorted(report['rounded'].items()))}")
    if any(row["asked_activations"] != "bf16" for row in report["layers"]):
        print("activation formats are not stored: inputs are computed with in 16 bits")
