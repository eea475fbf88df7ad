"""The full-precision model's answer on a text: its final hidden states, from which logits are computed when needed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.files import written_aside
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.walk import StreamedModel
from bitplan.reference.head import Head
from bitplan.reference.head_check import check_head
from bitplan.reference.text import BOS_POLICY, windows

MADE_BY = "Make it again with scripts/teacher.py"


@dataclass(frozen=True)
class Teacher:
    """Windows of tokens (sequences, length), the full-precision final hidden states (sequences, length, hidden), the head."""

    tokens: Tensor
    hidden: Tensor
    head: Head
    dtype: str


def make_teacher(
    model: StreamedModel, text: Path, length: int, sequences: int | None, dtype: str, skip: int = 0
) -> Teacher:
    """Run the unquantized model over a text, after its first `skip` windows. Raises `UserError` for a text that is too short, or a family that cannot be scored."""
    tokens = windows(model.checkpoint.folder, text, length, sequences, skip)
    made = teacher_from(model.checkpoint, tokens, model.run(tokens), dtype)
    check_head(model, made.head, made.hidden)
    return made


def teacher_from(checkpoint: Checkpoint, tokens: Tensor, hidden: Tensor, dtype: str) -> Teacher:
    """Return the teacher of final hidden states that a walk over `tokens` gave, computed in `dtype`."""
    return Teacher(tokens, hidden.to("cpu", torch.float32), Head.of(checkpoint), dtype)


def save_teacher(path: Path, teacher: Teacher, fingerprint: str, text: Path) -> None:
    """Write tokens and hidden states as safetensors; the head stays in the checkpoint."""
    from safetensors.torch import save_file

    facts = {
        "model_fingerprint": fingerprint,
        "text_sha256": hashlib.sha256(Path(text).read_bytes()).hexdigest(),
        "dtype": teacher.dtype,
        "bos": BOS_POLICY,
    }
    with written_aside(path) as aside:
        # One key only: safetensors writes several metadata keys in an order that changes from run to run.
        joined = ";".join(f"{key}={value}" for key, value in sorted(facts.items()))
        save_file(
            {"tokens": teacher.tokens.to(torch.int32), "hidden": teacher.hidden.contiguous()}, aside, {"facts": joined}
        )


def _saved(path: Path) -> tuple[dict[str, str], Tensor, Tensor]:
    """Return the facts, the tokens and the hidden states in a file. Raises `UserError` when it does not hold them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            facts = dict(pair.split("=", 1) for pair in handle.metadata()["facts"].split(";"))
            tokens, hidden = handle.get_tensor("tokens").clone(), handle.get_tensor("hidden").clone()
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise user_error(path, f"is no saved text: {error}", MADE_BY) from None
    if not {"model_fingerprint", "dtype"} <= facts.keys() or tokens.dim() != 2 or hidden.shape[:2] != tokens.shape:
        raise user_error(path, "is no saved text: tokens and hidden states do not belong together", MADE_BY)
    return facts, tokens, hidden


def load_teacher(path: Path, checkpoint: Checkpoint, fingerprint: str, dtype: str | None = None) -> Teacher:
    """Return the teacher saved for a model. Raises `UserError` if it belongs to another model or another compute dtype."""
    facts, tokens, hidden = _saved(path)
    if facts["model_fingerprint"] != fingerprint:
        raise user_error(path, "was made with another model", MADE_BY)
    if dtype and facts["dtype"] != dtype:
        raise user_error(path, f"was computed in {facts['dtype']}, not in {dtype}", f"Use --dtype {facts['dtype']}")
    return Teacher(tokens.to(torch.int64), hidden, Head.of(checkpoint), facts["dtype"])
