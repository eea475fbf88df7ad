"""Mixtures of experts: one module for each expert's matrix, as checkpoints store them.

transformers keeps the experts of a block as two 3-D parameters, `gate_up_proj` (E, 2 I, H) and `down_proj` (E, H, I). A plan
names the matrices of each expert, and each has its own weights, input statistics and activation format. The walk therefore
runs experts as separate modules.
"""

import torch
from torch import Tensor, nn

from bitplan.core.errors import user_error


class Expert(nn.Module):
    """One gated feed-forward network: down(act(gate(x)) * up(x))."""

    def __init__(self, hidden: int, inner: int, activation: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        shape = {"bias": False, "device": "meta", "dtype": dtype}
        self.gate_proj = nn.Linear(hidden, inner, **shape)
        self.up_proj = nn.Linear(hidden, inner, **shape)
        self.down_proj = nn.Linear(inner, hidden, **shape)
        self.act_fn = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the expert's output, (tokens, hidden) as its input."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


class SeparateExperts(nn.ModuleList):
    """The experts of a block, `0` to `E - 1`, called as transformers calls its fused module."""

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs.

        hidden (tokens, hidden); top_k_index (tokens, k) int64, the experts of each token; top_k_weights (tokens, k).
        """
        total = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            tokens, places = torch.where(top_k_index == number)
            if len(tokens):
                part = expert(hidden[tokens]) * top_k_weights[tokens, places, None]
                total.index_add_(0, tokens, part.to(total.dtype))
        return total


def has_experts(module: nn.Module) -> bool:
    """Return whether a block's module holds separate experts."""
    return any(isinstance(part, SeparateExperts) for part in module.modules())


def _is_fused(module: nn.Module) -> bool:
    parameters = dict(module.named_parameters(recurse=False))
    return all(name in parameters and parameters[name].dim() == 3 for name in ("gate_up_proj", "down_proj"))


def _separate(name: str, fused: nn.Module) -> SeparateExperts:
    count, double, hidden = fused.gate_up_proj.shape
    plain = not (getattr(fused, "is_transposed", False) or getattr(fused, "has_bias", False))
    if not plain or not hasattr(fused, "act_fn") or tuple(fused.down_proj.shape) != (count, hidden, double // 2):
        raise user_error(
            name, f"{type(fused).__name__} has biases or a layout of its own", "This family's experts are not supported"
        )
    dtype = fused.down_proj.dtype
    return SeparateExperts(Expert(hidden, double // 2, fused.act_fn, dtype) for _ in range(count))


def separate_experts_(module: nn.Module) -> None:
    """Replace every fused module of experts inside `module` by separate modules without weights.

    Raises `UserError` if the layout of a family's experts is unknown.
    """
    for name, part in list(module.named_modules()):
        if name and _is_fused(part):
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, _separate(name, part))
