"""What a GGUF file holds of each layer's format, before anything is written. Needs nothing but names and shapes."""

from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.table import PER_CHANNEL, size_of
from bitplan.models.layers import Layer
from bitplan.plans.layer_plan import LayerPlan
from bitplan.rounding.gguf_holders import packing_of, scales_vary, why_not_packed
from bitplan.runtimes.gguf.format_types import OWN, bits_of_type, block_of_type, fitting_type, type_of
from bitplan.runtimes.runtime import Verdict

SCALES = "where every scale is a float16 number"


def layer_verdict(layer: Layer, made: LayerPlan) -> Verdict:
    """Return how a GGUF holds a layer with `export.match: exact`."""
    if made.wq == UNQUANTIZED:
        return _with_inputs(Verdict("exact", "F16", 16.0, "left at 16 bits"), made)
    packed = _packed(layer, made)
    if packed is not None:
        return _with_inputs(packed, made)
    asked = type_of(made.wq)
    kind = fitting_type(asked, layer.shape[1])
    bits = bits_of_type(kind)
    if made.wq == PER_CHANNEL:
        why = "no type has a width per channel; the smallest within export.max_error is taken"
        return Verdict("approximate", kind, bits, why)
    if kind != asked:
        why = f"rows of {layer.shape[1]} columns do not fit {asked}'s block of {block_of_type(asked)}"
        return _with_inputs(Verdict("approximate", kind, bits, why), made)
    if made.wq in OWN:
        return _with_inputs(Verdict("exact", kind, bits), made)
    nearest = f"{made.wq} is no GGUF type; {kind} is nearest"
    unfit = why_not_packed(made.wq, size_of(made.wq).group(made.group_size), layer.shape[1])
    return _with_inputs(Verdict("approximate", kind, bits, "; ".join(filter(None, (nearest, unfit)))), made)


def _packed(layer: Layer, made: LayerPlan) -> Verdict | None:
    """Return the verdict on a layer whose codes a type holds; None on others."""
    size = size_of(made.wq) if made.wq != PER_CHANNEL else None
    packing = size and packing_of(made.wq, size.group(made.group_size), layer.shape[1])
    if not packing:
        return None
    bits, varies = bits_of_type(packing.kind), scales_vary(made.wq)
    wider = bits > size.bits_per_value(made.group_size)
    reasons = (f"the codes of {made.wq} in a wider type" if wider else "", SCALES if varies else "")
    status = "exact_in_more_bits" if wider else "exact"
    return Verdict(status, packing.kind, bits, "; ".join(filter(None, reasons)), always=not varies)


def _with_inputs(verdict: Verdict, made: LayerPlan) -> Verdict:
    """Return the verdict of a layer whose inputs may have a format too, which a GGUF does not hold."""
    if made.aq == UNQUANTIZED:
        return verdict
    why = "; ".join(filter(None, (verdict.reason, f"a GGUF holds no activation format ({made.aq})")))
    return Verdict("approximate", verdict.stored_type, verdict.stored_bits, why)
