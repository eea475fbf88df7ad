"""The head of a model, which maps its final hidden states to logits."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from bitplan.models.checkpoint import Checkpoint
from bitplan.models.finite import check_read
from bitplan.models.layers import output_tensor_name

VOCABULARY_SLICE = 16_384
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

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Head":
        """Read the head of a checkpoint."""
        name = output_tensor_name(checkpoint)
        bias = name.removesuffix(".weight") + ".bias"
        read = checkpoint.read([name, bias] if bias in checkpoint.tensors else [name])
        check_read(read, checkpoint)
        config = checkpoint.text_config
        factors = SCALES.get(config.get("model_type", ""), {})
        scale = prod(float(config.get(key, 1.0)) ** power for key, power in factors.items())
        return cls(read[name], read.get(bias), scale, config.get("final_logit_softcapping"))

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
