"""What a GGUF file holds of each layer's format, before anything is written."""

from gguf import GGMLQuantizationType

from bitplan.formats.base import Format
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.ggml import block_of, fallback
from bitplan.formats.table import IN_PLANS, PER_CHANNEL
from bitplan.models.layers import Layer
from bitplan.plans.plan import LayerPlan
from bitplan.rounding.gguf_packing import packing_of, scales_vary, why_not_packed
from bitplan.runtimes.gguf.format_types import bits_of_type, file_type, is_exact
from bitplan.runtimes.runtime import Verdict

SCALES = "where every scale is a float16 number"


def layer_verdict(layer: Layer, made: LayerPlan) -> Verdict:
    """Return how a GGUF holds a layer with `export.match: exact`."""
    if made.wq == UNQUANTIZED:
        return _with_inputs(Verdict("exact", "F16", 16.0, "left at 16 bits"), made)
    form = IN_PLANS[made.wq]
    packed = _packed(layer, made, form)
    if packed is not None:
        return _with_inputs(packed, made)
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
    nearest = f"{made.wq} is no GGUF type; {kind.name} is nearest"
    unfit = why_not_packed(made.wq, form.group(made.group_size), layer.shape[1])
    return _with_inputs(Verdict("approximate", kind.name, bits, "; ".join(filter(None, (nearest, unfit)))), made)


def _packed(layer: Layer, made: LayerPlan, form: Format) -> Verdict | None:
    """Return the verdict on a layer whose codes a type holds; None on others."""
    packing = packing_of(made.wq, form.group(made.group_size), layer.shape[1])
    if packing is None:
        return None
    bits = bits_of_type(packing.kind)
    wider = bits > form.bits_per_value(made.group_size)
    reasons = (
        f"the codes of {made.wq} in a wider type" if wider else "",
        SCALES if scales_vary(made.wq) else "",
    )
    return Verdict("exact_in_more_bits" if wider else "exact", packing.kind, bits, "; ".join(filter(None, reasons)))


def _with_inputs(verdict: Verdict, made: LayerPlan) -> Verdict:
    """Return the verdict of a layer whose inputs may have a format too, which a GGUF does not hold."""
    if made.aq == UNQUANTIZED:
        return verdict
    why = "; ".join(filter(None, (verdict.reason, f"a GGUF holds no activation format ({made.aq})")))
    return Verdict("approximate", verdict.stored_type, verdict.stored_bits, why)
