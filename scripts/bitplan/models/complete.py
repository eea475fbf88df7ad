"""Checks that a checkpoint has every tensor that its model needs, in the shape of config.json, as floats."""

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
FULL = "Give the checkpoint in bf16, fp16 or fp32: plans need the full precision"
# What quantizers store in place of a weight or next to it: GPTQ, AWQ, bitsandbytes, compressed-tensors, ModelOpt, FP8.
PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|weight_format|weight_packed|weight_shape|weight\.absmax|weight\.quant_map"
    r"|weight\.quant_state\..*|weight_scale|weight_scale_inv|weight_scale_2|weight_zero_point|scales)$"
)
ADAPTER = re.compile(r"\.(base_layer|lora_A|lora_B|lora_embedding_A)\.")
# Files in which quantizers record their settings, and the keys of these.
NOTES = {
    "hf_quant_config.json": (("producer", "name"), ("quantization", "quant_algo")),
    "quantize_config.json": (("quant_method",), ("bits",)),
    "quant_config.json": (("quant_method",), ("w_bit",)),
    "quantization_config.json": (("quant_method",), ("bits",)),
}


def _quantizer_note(checkpoint: Checkpoint) -> str:
    """Return the quantizer and its settings if a file in the folder names them, e.g. " (modelopt FP8)"; "" otherwise."""
    words = []
    for name, paths in NOTES.items():
        try:
            content = json.loads((checkpoint.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for path in paths:
            value = content
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            words += [str(value)] if isinstance(value, str | int) else []
    return f" ({' '.join(words)})" if words else ""


def _first_and_count(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _quantized_problems(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield a problem for weights that are not stored as floats: their scales would not be applied."""
    buffers = checkpoint.loading.buffers
    kinds = {name: info.dtype for name, info in checkpoint.tensors.items() if name not in buffers}
    other = [name for name, kind in kinds.items() if kind not in FLOATS]
    if other:
        stored = ", ".join(sorted({kinds[name] for name in other}))
        what = f"is quantized already{_quantizer_note(checkpoint)}: it stores {_first_and_count(other)} as {stored}"
        yield Problem(str(checkpoint.folder), what, FULL)


def _reason(checkpoint: Checkpoint, absent: Sequence[str]) -> tuple[str, str]:
    """Return a likely reason why tensors are missing, and what to do."""
    unused = checkpoint.loading.unused
    packed = [name for name in unused if PACKED.search(name)]
    if any(ADAPTER.search(name) for name in unused):
        return (
            ", and stores an adapter that is not merged",
            "Merge it: PeftModel.merge_and_unload(), then save_pretrained",
        )
    if packed:
        return f", and stores {_first_and_count(packed)}: it is quantized already{_quantizer_note(checkpoint)}", FULL
    if list(absent) == [checkpoint.loading.output_parameter]:
        return "", UNTIED
    listed = next((file for name, file in checkpoint.indexed.items() if name in absent), None)
    if listed:
        return f", which its index names in {listed}", "Download the checkpoint again"
    return "", OF_WEIGHTS


def _missing_problems(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield a problem for missing tensors: transformers would fill them with random values."""
    absent = [name for name, (stored, _) in checkpoint.loading.needed.items() if stored is None]
    if absent:
        why, hint = _reason(checkpoint, absent)
        yield Problem(str(checkpoint.folder), f"lacks the tensor {_first_and_count(absent)}{why}", hint)


def _shape_problems(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield a problem for tensors whose shape differs from config.json."""
    differing = [
        (stored, checkpoint.tensors[stored].shape, shape)
        for stored, shape in checkpoint.loading.needed.values()
        if stored is not None and checkpoint.tensors[stored].shape != shape
    ]
    if differing:
        name, shape, expected = differing[0]
        more = f"; so have {len(differing) - 1} more" if len(differing) > 1 else ""
        yield Problem(
            str(checkpoint.folder), f"{name} has shape {shape}, config.json asks for {expected}{more}", OF_WEIGHTS
        )


def _file_name_problems(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield a problem for a config.json that makes transformers load a file with an unusual name."""
    weights = checkpoint.config.get("transformers_weights")
    if weights not in (None, SINGLE if (checkpoint.folder / SINGLE).exists() else INDEX):
        hint = f"Call the file {SINGLE}, or its index {INDEX}, and remove the key"
        yield Problem(
            str(checkpoint.folder / "config.json"), f"transformers_weights names {weights!r} as the weights", hint
        )


def check_loading(checkpoint: Checkpoint) -> None:
    """Raise `UserError` unless the checkpoint holds every weight of its model as floats, in the right shape."""
    first = [*_file_name_problems(checkpoint)] or [*_quantized_problems(checkpoint)]
    problems = first or [*_missing_problems(checkpoint), *_shape_problems(checkpoint)]
    if problems:
        raise UserError(problems)
