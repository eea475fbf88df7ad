"""Whether a full-precision GGUF file computes what the model computes, before anything is compared by such files.

llama.cpp may know a family and not every setting of it: it then loads the file and computes another model. In full precision the
KL from the model is rounding, far below the limit here; beyond it the files of all plans would look broken.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFReader

from bitplan.core.errors import user_error
from bitplan.demo import DEMO
from bitplan.evaluate.scores import summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.walk import open_model
from bitplan.reference.reference import make_reference
from bitplan.runtimes.gguf.scores import score_gguf

LIMIT = 1e-3
WINDOWS, LENGTH = 2, 256
PLAN_KEY = "bitplan.plan"
WHOLE = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
ROPE_TYPES = ("default", "linear", "yarn", "longrope", "su", "llama3")
# {setting of config.json: the end of the file's key without which llama.cpp does not know of it}
KEYS = {
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "logits_scaling": "logit_scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
}
GATED = (
    "llama",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "phi3",
    "olmo2",
    "olmoe",
    "deepseek2",
)  # with SiLU, whatever is asked


def is_base(reader: GGUFReader) -> bool:
    """Return whether a file holds a model in full precision, and is no plan's."""
    return PLAN_KEY not in reader.fields and all(tensor.tensor_type in WHOLE for tensor in reader.tensors)


def known_differences(config: Mapping[str, Any], reader: GGUFReader) -> Iterator[str]:
    """Yield what of a `config.json` llama.cpp does not compute in this file, as far as it is known."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type"))
    if isinstance(kind, str) and kind not in ROPE_TYPES:
        yield f"llama.cpp has no rotary embedding of type {kind!r}"
    switched_off = config.get("use_sliding_window") is False
    for setting, key in KEYS.items():
        held = config.get(setting)
        lost = held not in (None, 1, 1.0) and not any(name.endswith(key) for name in reader.fields)
        if lost and not (setting == "sliding_window" and switched_off):
            yield f"the file does not hold {setting} {held}"
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish") and str(reader.fields["general.architecture"].contents()) in GATED:
        yield f"llama.cpp computes SiLU where config.json says hidden_act {act!r}"


def refuse_other_model(
    file: Path, kl: float, limit: float, config: Mapping[str, Any], shown: Path | None = None
) -> None:
    """Raise `UserError` when a full-precision file, called `shown` in messages, has a KL over the limit, with the reason where it
    is known. Files of plans and of recipes are quantized, and may have any."""
    reader = GGUFReader(file)
    if kl <= limit or not is_base(reader):
        return
    reasons = "; ".join(known_differences(config, reader)) or "llama.cpp may know the family in other shapes only"
    what = f"differs from the model: KL {kl:.3g} nats per token at full precision, limit {limit:g}; {reasons}"
    hint = "Compare plans by simulation (settings: runtimes: []), or accept the difference with --allow-base-kl (settings: allow_base_kl)"
    raise user_error("GGUF-BASE-DIFFERS", shown or file, what, hint)


def base_checker(
    checkpoint: Checkpoint, threads: int, limit: float, length: int = LENGTH
) -> Callable[[Path, Path], None]:
    """Return a function check(file, name shown) that raises `UserError` for a full-precision file that computes another model.

    The model is walked here, over a short text in windows of `length` tokens, before anything is converted: any text shows a
    difference that windows of that length can show.
    """
    torch.set_num_threads(threads)
    length = min(length, checkpoint.config.get("n_positions", length))
    reference = make_reference(open_model(checkpoint), DEMO / "evaluation.txt", length, WINDOWS, "fp32")

    def check(file: Path, shown: Path) -> None:
        kl = summarize(score_gguf(file, reference, threads, shown))["kl_mean"]
        refuse_other_model(file, kl, limit, checkpoint.config, shown)

    return check
