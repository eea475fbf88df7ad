"""What the random method prints."""

from collections import Counter

from bitplan.core.tables import Column, text_table
from bitplan.models.layers import ModelInfo
from bitplan.plans.plan import Plan

SHARES = (
    Column("format", "format"),
    Column("layers", "layers"),
    Column("share", "share", "{:.1%}"),
    Column("requested", "requested", "{:.1%}"),
)
LAYERS = (Column("layer", "layer"), Column("kind", "kind", left=True), Column("format", "format", left=True))


def print_result(plan: Plan, info: ModelInfo, verbose: bool = False) -> None:
    """Print how many layers of each kind there are, the counts and ratios reached, and with `verbose` every layer."""
    summary = plan.summary
    kinds = Counter(layer.kind for layer in info.quantizable)
    print(
        f"layers: {summary['total_layers']} ({kinds['expert']} expert, {kinds['attention']} attention, {kinds['other']} other)"
    )
    keys = {"layers": "{}_layers", "share": "{}_ratio", "requested": "requested_{}_ratio"}
    rows = [
        {"format": form, **{key: summary.get(name.format(form)) for key, name in keys.items()}}
        for form in ("mxfp4", "bf16", "mxfp8")
    ]
    print(text_table(rows, SHARES))
    print(
        f"average bits {summary['avg_bits']:.3f} over all parameters, {summary['avg_bits_layers']:.3f} over the layers"
    )
    if verbose:
        rows = [{"layer": each.name, "kind": each.kind, "format": plan.of(each.name).wq} for each in info.quantizable]
        print(text_table(rows, LAYERS))
