"""Whether a family turns hidden states into logits as `Head` does: asked of the family's own forward, on a few rows.

A walk ends at the last norm; what comes after it (matrix, bias, factor, soft cap) is computed from the checkpoint. A family that does
something else there would be scored wrongly without a word.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitplan.core.errors import user_error
from bitplan.models.walk import StreamedModel
from bitplan.reference.head import Head

WORDS = 64
POSITIONS = 8
TOLERANCE = 1e-2


class _Answer(tuple):
    """What a model below its head returns, by place and by name; whatever else a family asks for is None."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _answering(module: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Let the model below the head answer with given hidden states, and run nothing."""
    base = module.base_model
    inner = [part for part in (base, getattr(base, "decoder", None)) if isinstance(part, nn.Module)]
    for part in inner:
        part.forward = lambda *args, **kwargs: _Answer((hidden,))
    try:
        yield
    finally:
        for part in inner:
            part.__dict__.pop("forward", None)


@contextmanager
def _small_head(module: nn.Module, head: Head, model: StreamedModel) -> Iterator[None]:
    """Give the model an output matrix of a few words only."""
    kept = module.get_output_embeddings()
    small = nn.Linear(head.matrix.shape[1], min(WORDS, len(head.matrix)), bias=head.bias is not None)
    small.weight = nn.Parameter(head.matrix[:WORDS].to(model.device, model.dtype), requires_grad=False)
    if head.bias is not None:
        small.bias = nn.Parameter(head.bias[:WORDS].to(model.device, model.dtype), requires_grad=False)
    module.set_output_embeddings(small)
    try:
        yield
    finally:
        module.set_output_embeddings(kept)


@torch.inference_mode()
def check_head(model: StreamedModel, head: Head, hidden: Tensor) -> None:
    """Raise `UserError` when the family's own forward makes other logits of `hidden` (sequences, length, hidden) than `head`."""
    some = hidden[:1, :POSITIONS].to(model.device, model.dtype)
    tokens = torch.zeros(some.shape[:2], dtype=torch.int64, device=model.device)
    with _answering(model.module, some), _small_head(model.module, head, model):
        theirs = model.module(input_ids=tokens, use_cache=False).logits[0].to("cpu", torch.float32)
    few = Head(head.matrix[:WORDS], None if head.bias is None else head.bias[:WORDS], head.scale, head.softcap)
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
