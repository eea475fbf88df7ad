"""The reference: the full-precision model's final hidden states on a text, from which logits are computed when needed."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.safetensors_io import opened_tensors, write_tensors
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.walk import StreamedModel
from bitplan.reference.head import StoredHead
from bitplan.reference.head_check import check_head
from bitplan.reference.text import NO_BOS, CutText, TextRange, cut_text, text_digest

MADE_BY = "Create it again with scripts/teacher.py"


@dataclass(frozen=True)
class Reference:
    """Windows of tokens (sequences, length), final full-precision hidden states (sequences, length, hidden) and the head.

    The head is read where logits are computed and dropped there, so that its matrix and a block of a walk are not in memory together.
    `bos` is "none" or the token id with which windows begin; `source` is the range of the text, None if unknown.
    """

    tokens: Tensor
    hidden: Tensor
    head: StoredHead
    dtype: str
    bos: str = NO_BOS
    source: TextRange | None = None

    def first(self, windows: int | None) -> "Reference":
        """Return the reference on its first windows; on all for None."""
        return replace(self, tokens=self.tokens[:windows], hidden=self.hidden[:windows])


def make_reference(
    model: StreamedModel, text: Path, length: int, sequences: int | None, dtype: str, skip: int = 0
) -> Reference:
    """Run the unquantized model on a text after its first `skip` tokens. Raises `UserError` for a short text or an unsupported head."""
    model.check_length(length)
    head = StoredHead.of(model.checkpoint)
    cut = cut_text(model.checkpoint.folder, text, length, sequences, skip, model.bos)
    hidden = model.run(cut.tokens).to("cpu", torch.float32)
    check_head(model, head, hidden)
    return Reference(cut.tokens, hidden, head, dtype, cut.bos, cut.source)


def reference_of_tokens(checkpoint: Checkpoint, tokens: Tensor, hidden: Tensor, dtype: str) -> Reference:
    """Return the reference with the final hidden states of a walk over `tokens`, computed in `dtype`."""
    return Reference(tokens, hidden.to("cpu", torch.float32), StoredHead.of(checkpoint), dtype)


def reference_of_text(checkpoint: Checkpoint, cut: CutText, hidden: Tensor, dtype: str) -> Reference:
    """Return the reference with the final hidden states of a walk over windows of a text, including their range in the text."""
    return replace(reference_of_tokens(checkpoint, cut.tokens, hidden, dtype), bos=cut.bos, source=cut.source)


def save_reference(path: Path, reference: Reference, fingerprint: str, text: Path) -> None:
    """Write tokens and hidden states as safetensors; the head stays in the checkpoint."""
    facts = {
        "model_fingerprint": fingerprint,
        "text_sha256": text_digest(text),
        "dtype": reference.dtype,
        "bos": reference.bos,
    }
    if reference.source is not None:
        facts |= {"first_token": str(reference.source.start), "end_token": str(reference.source.stop)}
    joined = ";".join(f"{key}={value}" for key, value in sorted(facts.items()))
    write_tensors(path, {"tokens": reference.tokens.to(torch.int32), "hidden": reference.hidden}, joined)


def _read_saved(path: Path) -> tuple[dict[str, str], Tensor, Tensor]:
    """Return facts, tokens and hidden states of a file. Raises `UserError` if it lacks them."""
    with opened_tensors(path, "REFERENCE-INVALID", "a saved reference", MADE_BY) as (handle, text):
        facts = dict(pair.split("=", 1) for pair in text.split(";"))
        tokens, hidden = handle.get_tensor("tokens").clone(), handle.get_tensor("hidden").clone()
    if not {"model_fingerprint", "dtype"} <= facts.keys() or tokens.dim() != 2 or hidden.shape[:2] != tokens.shape:
        raise user_error(
            "REFERENCE-INVALID", path, "is not a saved reference: tokens and hidden states do not match", MADE_BY
        )
    return facts, tokens, hidden


def load_reference(path: Path, checkpoint: Checkpoint, fingerprint: str, dtype: str | None = None) -> Reference:
    """Return the reference saved for a model. Raises `UserError` if it belongs to another model or another compute dtype."""
    facts, tokens, hidden = _read_saved(path)
    if facts["model_fingerprint"] != fingerprint:
        raise user_error("REFERENCE-OTHER-MODEL", path, "was created with a different model", MADE_BY)
    if dtype and facts["dtype"] != dtype:
        raise user_error(
            "REFERENCE-OTHER-DTYPE",
            path,
            f"was computed in {facts['dtype']}, not in {dtype}",
            f"Use --dtype {facts['dtype']}",
        )
    where = {"bos": facts.get("bos", NO_BOS), "source": _source(facts)}
    return Reference(tokens.to(torch.int64), hidden, StoredHead.of(checkpoint), facts["dtype"], **where)


def _source(facts: dict[str, str]) -> TextRange | None:
    """Return the range of a saved text; None for files of versions that did not record it."""
    if not {"text_sha256", "first_token", "end_token"} <= facts.keys():
        return None
    return TextRange(facts["text_sha256"], int(facts["first_token"]), int(facts["end_token"]))
