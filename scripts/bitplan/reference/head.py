"""The head of a model, which maps its final hidden states to logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from bitplan.models.checkpoint import Checkpoint
from bitplan.models.finite import check_stored
from bitplan.models.layers import output_tensor_name

VOCABULARY_SLICE = 16_384
# A part has its own pages, which return to the system at once: glibc takes what is under 32 MiB from a heap that it keeps.
VALUES_AT_ONCE = 1 << 25
# Scale factors of the logits by family: {model type: {key of config.json: power}}.
SCALES = {
    **{family: {"logit_scale": 1} for family in ("cohere", "cohere2")},
    **{family: {"logits_scaling": -1} for family in ("granite", "granitemoe", "granitemoeshared", "granitemoehybrid")},
}


@dataclass(frozen=True)
class Head:
    """The output matrix (vocabulary, hidden) in its stored dtype, an optional bias (Phi), a scale factor (Cohere's
    `logit_scale`, the inverse of Granite's `logits_scaling`) and a soft cap (Gemma 2)."""

    matrix: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits (rows, vocabulary) of hidden states (rows, hidden); the matrix is converted slice by slice."""
        wide = hidden.to(torch.float32)
        parts = [wide @ part.to(torch.float32).T for part in self.matrix.split(VOCABULARY_SLICE)]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self.bias is not None:
            logits += self.bias.to(torch.float32)
        if self.scale != 1.0:
            logits *= self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True)
class StoredHead:
    """The head of a checkpoint, checked but not in memory: its matrix is as large as a block, and a walk needs none of it."""

    checkpoint: Checkpoint
    name: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "StoredHead":
        """Return the head of a checkpoint. Raises `UserError` if it has none, or if there is NaN or Inf in it; a few MiB are read at a time."""
        head = cls(checkpoint, output_tensor_name(checkpoint))
        check_stored(head._tensors, checkpoint)
        return head

    @property
    def vocabulary(self) -> int:
        """Rows of the output matrix."""
        return self.checkpoint.tensors[self.name].shape[0]

    def read(self, device: torch.device | str = "cpu") -> Head:
        """Return the head with its matrix on a device. The caller drops it before a walk."""
        return self._head({name: self._read_in_parts(name, device) for name in self._tensors})

    def read_first(self, words: int) -> Head:
        """Return the head of the first `words` tokens of the vocabulary, of which alone the rows are read."""
        rows = torch.arange(min(words, self.vocabulary))
        return self._head({name: self.checkpoint.read_rows(name, rows) for name in self._tensors})

    def _read_in_parts(self, name: str, device: torch.device | str) -> Tensor:
        """Return a tensor on a device, read some rows at a time: the pages of a whole file that is mapped count as memory, too."""
        shape = self.checkpoint.tensors[name].shape
        whole = None
        for rows in torch.arange(shape[0]).split(max(1, VALUES_AT_ONCE // prod(shape[1:]))):
            part = self.checkpoint.read_rows(name, rows)
            whole = part.new_empty(shape, device=device) if whole is None else whole
            whole[rows[0] : rows[-1] + 1] = part
        return whole

    @property
    def _tensors(self) -> list[str]:
        bias = self.name.removesuffix(".weight") + ".bias"
        return [self.name, bias] if bias in self.checkpoint.tensors else [self.name]

    def _head(self, read: Mapping[str, Tensor]) -> Head:
        """Return the head with these tensors and the factors of the family."""
        config = self.checkpoint.text_config
        factors = SCALES.get(config.get("model_type", ""), {})
        scale = prod(float(config.get(key, 1.0)) ** power for key, power in factors.items())
        matrix, *bias = (read[name] for name in self._tensors)
        return Head(matrix, *(bias or [None]), scale, config.get("final_logit_softcapping"))
