"""The inputs of a block's layers: samples, the largest |x| of each column, and the norm that the input comes from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitplan.models.experts import SeparateExperts
from bitplan.models.walk import Block


@dataclass
class BlockInputs:
    """The inputs of a block's layers, by checkpoint name.

    - `samples`: up to `sample_tokens` tokens of each layer's input, as windows (length, in) or, for experts, the tokens routed
      to them.
    - `absmax`: the largest |x| (in,) over all tokens; `squares`: the sum of x^2 (in,); `tokens`: their number. Both are on the device of
      the inputs until `cut_`, which brings them to the processor.
    - `norm_of`: the norm whose output is the layer's input.
    """

    sample_tokens: int
    samples: dict[str, list[Tensor]] = field(default_factory=dict)
    absmax: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    norm_of: dict[str, str] = field(default_factory=dict)
    _outputs: dict[str, Tensor] = field(default_factory=dict)

    def add_norm_(self, norm: str, output: Tensor) -> None:
        """Record a norm's output."""
        # Holding the tensor keeps its address from being reused.
        self._outputs[norm] = output
        self._grow_(norm, output)

    def add_input_(self, layer: str, inputs: Tensor) -> None:
        """Record a layer's input (..., in)."""
        self.link_(layer, inputs)
        self._grow_(layer, inputs)
        flat = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        squares = flat.square().sum(0, dtype=torch.float64)
        self.squares[layer] = self.squares.get(layer, torch.zeros_like(squares)) + squares
        seen_tokens = self.tokens.get(layer, 0)
        self.tokens[layer] = seen_tokens + len(flat)
        if seen_tokens < self.sample_tokens:
            windows = list(inputs) if inputs.dim() == 3 else [inputs]
            self.samples.setdefault(layer, []).extend(window.detach().to(torch.float32).clone() for window in windows)

    def link_(self, layer: str, inputs: Tensor) -> None:
        """Record which norm's output a layer reads, if any."""
        for norm, output in self._outputs.items():
            if output.data_ptr() == inputs.data_ptr() and output.numel() == inputs.numel():
                self.norm_of[layer] = norm

    def _grow_(self, name: str, values: Tensor) -> None:
        largest = values.detach().abs().reshape(-1, values.shape[-1]).amax(0).to(torch.float32)
        self.absmax[name] = torch.maximum(self.absmax[name], largest) if name in self.absmax else largest

    def cut_(self) -> None:
        """Drop windows beyond `sample_tokens` of each layer, and the norms' outputs."""
        self._outputs.clear()
        for sizes in (self.absmax, self.squares):
            sizes.update({name: values.cpu() for name, values in sizes.items()})
        for layer, windows in self.samples.items():
            lengths = torch.tensor([len(window) for window in windows]).cumsum(0)
            keep = int((lengths < self.sample_tokens).sum()) + 1
            self.samples[layer] = windows[:keep]


@contextmanager
def observe_inputs(block: Block, sample_tokens: int) -> Iterator[BlockInputs]:
    """Yield the block's inputs, filled while it runs inside the context; at the end samples are cut to `sample_tokens` tokens."""
    seen = BlockInputs(sample_tokens)
    names = {id(module): name for name, module in block.layers.items()}

    def after_norm(name: str):
        return lambda module, args, output: seen.add_norm_(name, output)

    def before_layer(name: str):
        return lambda module, args: seen.add_input_(name, args[0])

    def before_experts(readers: list[str]):
        return lambda module, args: [seen.link_(reader, args[0]) for reader in readers] and None

    hooks = [module.register_forward_hook(after_norm(name)) for name, module in block.norms.items()]
    hooks += [module.register_forward_pre_hook(before_layer(name)) for name, module in block.layers.items()]
    for module in block.module.modules():
        if isinstance(module, SeparateExperts):
            readers = [names[id(part)] for expert in module for part in _readers(expert)]
            hooks.append(module.register_forward_pre_hook(before_experts(readers)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        seen.cut_()


def _readers(expert: nn.Module) -> tuple[nn.Module, ...]:
    """Return the expert's layers that read the block's hidden states."""
    return expert.gate_proj, expert.up_proj
