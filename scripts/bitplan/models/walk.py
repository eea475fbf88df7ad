"""Running a model block by block: load a block's weights, run all sequences through it, drop it.

Statistics, sensitivity, perplexity and pruning are all visitors of this one walk. The model's own forward calls its blocks,
so that masks, positions and whatever else a family hands to a block are right without knowing the family; each block's
forward is replaced by one that loads the weights, hands block and hidden states to the visitor, and drops the weights.
Memory: one block, the rows of the embedding that the text uses, the final norm, and the hidden states of all sequences.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from bitplan.errors import user_error
from bitplan.models.checkpoint import Checkpoint

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class Block:
    """A decoder block with its weights loaded, and its layers by checkpoint name."""

    index: int
    name: str
    module: nn.Module
    layers: Mapping[str, nn.Module]


# forward(hidden (sequences, length, hidden)) -> the same shape, after the block
Forward = Callable[[Tensor], Tensor]
# visit(block, hidden, forward) -> the hidden states that the next block gets
Visit = Callable[[Block, Tensor, Forward], Tensor]


def run_plainly(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
    """The visitor that changes nothing."""
    return forward(hidden)


def _is_layer(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def _slice(value: object, start: int, stop: int, sequences: int) -> object:
    """Return the part of a block's argument that belongs to some of the sequences; what has no batch dimension stays whole."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == sequences:
        return value[start:stop]
    if isinstance(value, tuple):
        return tuple(_slice(item, start, stop, sequences) for item in value)
    return value


@dataclass
class StreamedModel:
    """A causal language model of which at most one block has weights at any time."""

    checkpoint: Checkpoint
    module: nn.Module
    dtype: torch.dtype
    device: torch.device
    block_list: str = ""
    tokens_per_batch: int = TOKENS_PER_BATCH
    block_forwards: int = field(default=0, init=False)
    tokens_forwarded: int = field(default=0, init=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return self.module.get_submodule(self.block_list)

    def stored_name(self, name: str) -> str | None:
        """Return the checkpoint's name of a parameter of the module; None where it is tied to another or absent."""
        prefix = f"{self.module.base_model_prefix}."
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in self.checkpoint.tensors:
                return candidate
        return None

    @property
    def table_name(self) -> str:
        """The checkpoint's name of the token embedding; a tied checkpoint may store it as the output matrix."""
        table = self.module.get_input_embeddings()
        name = next(n for n, module in self.module.named_modules() if module is table)
        return self.stored_name(f"{name}.weight") or "lm_head.weight"

    @torch.inference_mode()
    def run(self, tokens: Tensor, visit: Visit = run_plainly) -> Tensor:
        """Return the final hidden states, after the last norm, of `tokens` (sequences, length) int64.

        Every block is loaded once, and `visit` decides what runs on it. Shape (sequences, length, hidden), dtype of the walk.
        """
        rows, inverse = torch.unique(tokens, return_inverse=True)
        table = self.module.get_input_embeddings()
        table.weight = self._parameter(self.checkpoint.read_rows(self.table_name, rows))
        hook = table.register_forward_pre_hook(lambda module, args: (inverse.to(self.device),))
        for index, block in enumerate(self.blocks):
            block.forward = partial(self._visit_block, index, block, visit)
        try:
            positions = torch.arange(tokens.shape[1], device=self.device).unsqueeze(0)
            output = self.module.base_model(input_ids=tokens.to(self.device), position_ids=positions, use_cache=False)
        finally:
            hook.remove()
            table.weight = nn.Parameter(torch.empty_like(table.weight, device="meta"), requires_grad=False)
            for block in self.blocks:
                block.__dict__.pop("forward", None)
        return output.last_hidden_state

    def _parameter(self, tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.to(device=self.device, dtype=self.dtype), requires_grad=False)

    def _visit_block(
        self, index: int, module: nn.Module, visit: Visit, hidden: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        name = f"{self.block_list}.{index}"
        self.load_(name, module)
        layers = {
            self._layer_name(f"{name}.{inner}"): part for inner, part in module.named_modules() if _is_layer(part)
        }
        block = Block(index, name, module, layers)
        try:
            return visit(block, hidden, partial(self._in_batches, module, args, kwargs))
        finally:
            self.drop_(module)

    def _layer_name(self, name: str) -> str:
        return (self.stored_name(f"{name}.weight") or f"{name}.weight").removesuffix(".weight")

    def _in_batches(self, module: nn.Module, args: tuple, kwargs: dict, hidden: Tensor) -> Tensor:
        sequences, length = hidden.shape[:2]
        step = max(1, self.tokens_per_batch // length)
        self.block_forwards += 1
        self.tokens_forwarded += sequences * length
        outputs = torch.empty_like(hidden)
        for start in range(0, sequences, step):
            stop = min(start + step, sequences)
            some = {key: _slice(value, start, stop, sequences) for key, value in kwargs.items()}
            rest = [_slice(value, start, stop, sequences) for value in args]
            output = type(module).forward(module, hidden[start:stop], *rest, **some)
            outputs[start:stop] = output[0] if isinstance(output, tuple) else output
        return outputs

    def load_(self, prefix: str, module: nn.Module) -> None:
        """Give `module` its weights from the checkpoint. Raises `UserError` naming what is missing or misshapen."""
        stored = {inner: self.stored_name(f"{prefix}.{inner}") for inner, _ in module.named_parameters()}
        absent = [f"{prefix}.{inner}" for inner, name in stored.items() if name is None]
        if absent:
            raise user_error(
                self.checkpoint.folder, f"lacks the tensor {absent[0]}", "Check that config.json belongs to the weights"
            )
        tensors = self.checkpoint.read(stored.values(), self.dtype)
        for inner, name in stored.items():
            owner, _, leaf = inner.rpartition(".")
            place = module.get_submodule(owner)
            if tensors[name].shape != getattr(place, leaf).shape:
                expected = tuple(getattr(place, leaf).shape)
                raise user_error(name, f"has shape {tuple(tensors[name].shape)}, config.json asks for {expected}")
            setattr(place, leaf, self._parameter(tensors.pop(name)))

    def drop_(self, module: nn.Module) -> None:
        """Take the weights of `module` away again; buffers stay."""
        for inner, parameter in list(module.named_parameters()):
            owner, _, leaf = inner.rpartition(".")
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            setattr(module.get_submodule(owner), leaf, nn.Parameter(empty, requires_grad=False))
        return_free_memory()


def return_free_memory() -> None:
    """Give freed memory back to the system where the allocator is glibc's, which otherwise keeps most of a block."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _find_blocks(module: nn.Module, count: int) -> str:
    lists = {
        name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count
    }
    if not lists:
        raise user_error(
            type(module).__name__, f"has no list of {count} decoder blocks", "This family is not supported"
        )
    return min(lists, key=len)


def pick_device(name: str) -> torch.device:
    """Return the torch device called `name`. Raises `UserError` when this machine has no such device."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise user_error("--device", f"{name!r} is no device", "Use cpu, cuda, cuda:N or mps") from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise user_error("--device", f"{name} is not available on this machine", "Use --device cpu")
    return device


def open_model(checkpoint: Checkpoint, dtype: str = "fp32", device: str = "cpu") -> StreamedModel:
    """Return a model whose blocks are still without weights; what stands outside the blocks, but embedding and output, is loaded."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    place = pick_device(device)
    config = AutoConfig.from_pretrained(checkpoint.folder)
    with init_empty_weights(include_buffers=False):
        module = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval()
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, buffer.to(place))
    # The table is cut down to the tokens in use, so an index into the whole one means nothing.
    module.get_input_embeddings().padding_idx = None
    model = StreamedModel(checkpoint, module, DTYPES[dtype], place, _find_blocks(module, config.num_hidden_layers))
    outside = (module.get_input_embeddings(), module.get_output_embeddings())
    for name, part in module.named_modules():
        inside = f"{name}.".startswith(f"{model.block_list}.")
        if not inside and part not in outside and any(True for _ in part.parameters(recurse=False)):
            model.load_(name, part)
    return model
