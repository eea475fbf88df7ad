"""Parts of a verdict that all runtimes of packed checkpoints give alike, and the names of formats as these read them."""

import re
from collections.abc import Sequence

from bitplan.formats.facts import UNQUANTIZED
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.layer_plan import LayerPlan
from bitplan.runtimes.runtime import Status, Verdict

DENSE = {UNQUANTIZED: "", "fp16": "exact in float16 and float32 alone"}
# Families with a module for matrices that is no plain Linear. transformers 5.23 fails while it loads their packed layers, and auto-round
# leaves these modules as they were, with random weights.
OWN_MODULES = {"falcon": "FalconLinear"}
_INTEGER = re.compile(r"int([2-8])(_asym)?(?:_bf16s)?")


def integer_of(form: str) -> tuple[int, bool] | None:
    """Return (bits, whether it is symmetric) of an integer format in groups, as int4_asym_bf16s; None for any other format."""
    integer = _INTEGER.fullmatch(form)
    return (int(integer[1]), integer[2] is None) if integer else None


def element_of(form: str) -> str:
    """Return an MX format's name without its rule of scales: mxfp4 of mxfp4_mse. Other names stay as they are."""
    return re.sub("_(rceil|mse)$", "", form)


def with_inputs(
    made: LayerPlan, status: Status, stored: str, bits: float, reasons: Sequence[str], always: bool = True
) -> Verdict:
    """Return a verdict; a layer whose inputs have a format is approximate: the runtime computes with 16-bit inputs."""
    if made.aq != UNQUANTIZED:
        status, reasons = "approximate", [*reasons, f"inputs stay at 16 bits, not {made.aq}"]
    return Verdict(status, stored, bits, "; ".join(filter(None, reasons)), always)


def dense_verdict(made: LayerPlan) -> Verdict:
    """Return the verdict on a layer that is stored in 16 bits."""
    return with_inputs(made, "exact", made.wq, 16.0, [DENSE[made.wq]], always=not DENSE[made.wq])


def refused(reason: str) -> Verdict:
    """Return the verdict on a layer that cannot be stored."""
    return Verdict("refused", "", 0.0, reason)


def family_refusal(info: ModelInfo | None) -> str:
    """Return why the matrices of a family cannot be packed; "" for any other family."""
    module = OWN_MODULES.get(info.model_type, "") if info else ""
    return (
        f"the matrices of {info.model_type} are modules of class {module}, which readers do not replace"
        if module
        else ""
    )


def embedding_refusal(layer: Layer) -> str:
    """Return why an embedding cannot be packed; "" for any other layer."""
    return "the embedding and the output matrix are stored in 16 bits alone" if layer.is_embedding else ""
