"""Checks on a few rows that `Head` gives the logits of the family's own forward.

A walk ends at the last norm; the rest (matrix, bias, scale factor, soft cap) is computed from the checkpoint. Without this
check, a family that does something else there would silently get wrong scores.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitplan.core.errors import user_error
from bitplan.models.walk import StreamedModel
from bitplan.reference.head import Head, StoredHead

WORDS = 64
POSITIONS = 8
TOLERANCE = 1e-2


class _BaseOutput(tuple):
    """The output of a base model, by index and by name; all other attributes that a family reads are None."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _fix_output(module: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Make the base model return the given hidden states without running."""
    base = module.base_model
    inner = [part for part in (base, getattr(base, "decoder", None)) if isinstance(part, nn.Module)]
    for part in inner:
        part.forward = lambda *args, **kwargs: _BaseOutput((hidden,))
    try:
        yield
    finally:
        for part in inner:
            part.__dict__.pop("forward", None)


@contextmanager
def _shrink_head(module: nn.Module, head: Head, model: StreamedModel) -> Iterator[None]:
    """Replace the output matrix by that of a smaller head."""
    original = module.get_output_embeddings()
    small = nn.Linear(head.matrix.shape[1], len(head.matrix), bias=head.bias is not None)
    small.weight = nn.Parameter(head.matrix.to(model.device, model.dtype), requires_grad=False)
    if head.bias is not None:
        small.bias = nn.Parameter(head.bias.to(model.device, model.dtype), requires_grad=False)
    module.set_output_embeddings(small)
    try:
        yield
    finally:
        module.set_output_embeddings(original)


@torch.inference_mode()
def check_head(model: StreamedModel, head: StoredHead, hidden: Tensor) -> None:
    """Raise `UserError` if the family's own forward gives other logits for `hidden` (sequences, length, hidden) than `head`."""
    some = hidden[:1, :POSITIONS].to(model.device, model.dtype)
    tokens = torch.zeros(some.shape[:2], dtype=torch.int64, device=model.device)
    few = head.read_first(WORDS)
    with _fix_output(model.module, some), _shrink_head(model.module, few, model):
        theirs = model.module(input_ids=tokens, use_cache=False).logits[0].to("cpu", torch.float32)
    ours = few.logits(some[0].to("cpu"))
    if not torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * theirs.abs().max().item()):
        kind = model.checkpoint.config.get("model_type", "unknown")
        what = f"family {kind!r} computes logits from its last hidden states in an unsupported way"
        raise user_error(
            "MODEL-UNKNOWN-HEAD",
            model.checkpoint.folder,
            what,
            "docs/families.md lists the families that can be scored",
        )
