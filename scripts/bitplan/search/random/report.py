"""What the random method prints."""

from collections import Counter

from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import Plan


def print_result(plan: Plan, info: ModelInfo, verbose: bool = False) -> None:
    """Print how many layers of each kind there are, the counts and ratios reached, and with `verbose` every layer."""
    summary = plan.summary
    kinds = Counter(layer.kind for layer in info.quantizable)
    print(
        f"layers: {summary['total_layers']} ({kinds['expert']} expert, {kinds['attention']} attention, {kinds['other']} other)"
    )
    for form in ("mxfp4", "bf16", "mxfp8"):
        asked = summary.get(f"requested_{form}_ratio")
        wish = "" if asked is None else f", {100 * asked:.1f} % requested"
        print(f"  {form:<6} {summary[f'{form}_layers']:>5} layers, {100 * summary[f'{form}_ratio']:5.1f} %{wish}")
    print(
        f"average bits {summary['avg_bits']:.3f} over all parameters, {summary['avg_bits_layers']:.3f} over the layers"
    )
    if verbose:
        for layer in info.quantizable:
            print(f"  {layer.name:<44} {layer.kind:<10} {plan.of(layer.name).wq}")
