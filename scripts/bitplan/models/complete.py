"""Whether a checkpoint holds what its model needs: every tensor, in the shape that config.json asks for, as floats."""

import json
import re
from collections.abc import Iterator, Sequence

from bitplan.core.errors import Problem, UserError
from bitplan.models.checkpoint import FLOATS, Checkpoint
from bitplan.models.checkpoint_files import INDEX, SINGLE

OF_WEIGHTS = "Check that config.json belongs to the weights"
UNTIED = (
    "config.json says that the output is a matrix of its own: set tie_word_embeddings to true if it is the embedding"
)
FULL = "Use the checkpoint in bf16, fp16 or fp32"
# What quantizers store in the place of a weight, or beside it: GPTQ, AWQ, bitsandbytes, compressed-tensors, ModelOpt, FP8.
PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|weight_format|weight_packed|weight_shape|weight\.absmax|weight\.quant_map"
    r"|weight\.quant_state\..*|weight_scale|weight_scale_inv|weight_scale_2|weight_zero_point|scales)$"
)
ADAPTER = re.compile(r"\.(base_layer|lora_A|lora_B|lora_embedding_A)\.")
# Files in which quantizers write down what they did, and where in them it stands.
NOTES = {
    "hf_quant_config.json": (("producer", "name"), ("quantization", "quant_algo")),
    "quantize_config.json": (("quant_method",), ("bits",)),
    "quant_config.json": (("quant_method",), ("w_bit",)),
    "quantization_config.json": (("quant_method",), ("bits",)),
}


def _noted(checkpoint: Checkpoint) -> str:
    """Return who quantized a checkpoint and how, as far as a file in the folder says so, e.g. " (modelopt FP8)"; "" otherwise."""
    words = []
    for name, paths in NOTES.items():
        try:
            content = json.loads((checkpoint.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for path in paths:
            held = content
            for key in path:
                held = held.get(key) if isinstance(held, dict) else None
            words += [str(held)] if isinstance(held, str | int) else []
    return f" ({' '.join(words)})" if words else ""


def _counted(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _unread(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield a problem for weights that are not stored as floats, whose scales this does not apply."""
    buffers = checkpoint.loading.buffers
    kinds = {name: info.dtype for name, info in checkpoint.tensors.items() if name not in buffers}
    other = [name for name, kind in kinds.items() if kind not in FLOATS]
    if other:
        stored = ", ".join(sorted({kinds[name] for name in other}))
        what = f"is already quantized{_noted(checkpoint)}: it stores {_counted(other)} as {stored}"
        yield Problem("MODEL-QUANTIZED", str(checkpoint.folder), what, FULL)


def _reason(checkpoint: Checkpoint, absent: Sequence[str]) -> tuple[str, str]:
    """Return what may explain that tensors are absent, and what to do."""
    unused = checkpoint.loading.unused
    packed = [name for name in unused if PACKED.search(name)]
    if any(ADAPTER.search(name) for name in unused):
        return (
            ", and stores an adapter that is not merged",
            "Merge it: PeftModel.merge_and_unload(), then save_pretrained",
        )
    if packed:
        return f", and stores {_counted(packed)}: it is already quantized{_noted(checkpoint)}", FULL
    if list(absent) == [checkpoint.loading.output_parameter]:
        return "", UNTIED
    listed = next((file for name, file in checkpoint.indexed.items() if name in absent), None)
    if listed:
        return f", which its index names in {listed}", "Download the checkpoint again"
    return "", OF_WEIGHTS


def _absent(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield a problem for what the model needs and the files lack: transformers would fill it with random values."""
    absent = [name for name, (held, _) in checkpoint.loading.needed.items() if held is None]
    if absent:
        why, hint = _reason(checkpoint, absent)
        yield Problem("MODEL-NO-TENSOR", str(checkpoint.folder), f"lacks the tensor {_counted(absent)}{why}", hint)


def _misshapen(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield a problem for tensors of another shape than config.json asks for."""
    found = [
        (held, checkpoint.tensors[held].shape, shape)
        for held, shape in checkpoint.loading.needed.values()
        if held is not None and checkpoint.tensors[held].shape != shape
    ]
    if found:
        name, shape, asked = found[0]
        more = f"; {len(found) - 1} more tensors differ" if len(found) > 1 else ""
        yield Problem(
            "MODEL-BAD-SHAPE",
            str(checkpoint.folder),
            f"{name} has shape {shape}, config.json asks for {asked}{more}",
            OF_WEIGHTS,
        )


def _elsewhere(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield a problem for a config.json that has transformers load another file than the usual ones."""
    named = checkpoint.config.get("transformers_weights")
    if named not in (None, SINGLE if (checkpoint.folder / SINGLE).exists() else INDEX):
        hint = f"Rename the file to {SINGLE} or its index to {INDEX} and remove the key"
        yield Problem(
            "MODEL-UNUSUAL-NAME",
            str(checkpoint.folder / "config.json"),
            f"transformers_weights names {named!r} as the weights",
            hint,
        )


def check_loading(checkpoint: Checkpoint) -> None:
    """Raise `UserError` unless the checkpoint holds every weight of its model as floats, in the right shape."""
    first = [*_elsewhere(checkpoint)] or [*_unread(checkpoint)]
    problems = first or [*_absent(checkpoint), *_misshapen(checkpoint)]
    if problems:
        raise UserError(problems)
