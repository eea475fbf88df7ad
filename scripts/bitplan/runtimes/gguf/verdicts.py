"""What a GGUF file holds of each layer's format, before anything is written."""

from gguf import GGMLQuantizationType

from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.ggml import block_of, fallback
from bitplan.formats.table import IN_PLANS, PER_CHANNEL
from bitplan.models.layers import Layer
from bitplan.plans.plan import LayerPlan
from bitplan.runtimes.gguf.format_types import bits_of_type, file_type, is_exact
from bitplan.runtimes.runtime import Verdict

TIES = "MXFP4 rounds exact ties towards zero; the plan rounds them to even"


def layer_verdict(layer: Layer, made: LayerPlan) -> Verdict:
    """Return how a GGUF holds a layer with `export.match: bits`; codes of a rounded plan may be held exactly where this says approximate."""
    if made.wq == UNQUANTIZED:
        return _with_inputs(Verdict("exact", "F16", 16.0, "left at 16 bits"), made)
    form = IN_PLANS[made.wq]
    asked = GGMLQuantizationType[file_type(form)]
    kind = fallback(asked, layer.shape[1])
    bits = bits_of_type(kind.name)
    if made.wq == PER_CHANNEL:
        why = "no type has a width per channel; the smallest within export.max_error is taken"
        return Verdict("approximate", kind.name, bits, why)
    if kind is not asked:
        why = f"rows of {layer.shape[1]} columns do not fit {asked.name}'s block of {block_of(asked)[0]}"
        return _with_inputs(Verdict("approximate", kind.name, bits, why), made)
    if is_exact(form):
        return _with_inputs(Verdict("exact", kind.name, bits), made)
    nearest = (
        TIES if kind.name == "MXFP4" and made.wq == "mxfp4" else f"{made.wq} is no GGUF type; {kind.name} is nearest"
    )
    return _with_inputs(Verdict("approximate", kind.name, bits, nearest), made)


def _with_inputs(verdict: Verdict, made: LayerPlan) -> Verdict:
    """Return the verdict of a layer whose inputs may have a format too, which a GGUF does not hold."""
    if made.aq == UNQUANTIZED:
        return verdict
    why = "; ".join(filter(None, (verdict.reason, f"a GGUF holds no activation format ({made.aq})")))
    return Verdict("approximate", verdict.stored_type, verdict.stored_bits, why)
