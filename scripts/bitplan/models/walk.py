"""Runs a model block by block: load a block's weights, run all windows through it, drop them.

Statistics, sensitivity, perplexity and pruning are all visitors of this walk. The model's own forward calls its blocks, so
masks, positions and other arguments are right for every family. Each block's forward is replaced by a function that loads
the weights, calls the visitor with the block and the hidden states, and drops the weights.
Memory: one block, the embedding rows of the tokens in use, the final norm, and the hidden states of all windows.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from bitplan.core.errors import user_error
from bitplan.models.built import build
from bitplan.models.checkpoint import Checkpoint, TensorInfo
from bitplan.models.complete import OF_WEIGHTS
from bitplan.models.devices import pick_device, return_free_memory
from bitplan.models.experts import separate_experts_
from bitplan.models.finite import check_read
from bitplan.models.loading import stored_name

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOKENS_PER_BATCH = 2048
# A block of fewer bytes leaves its memory to the next one: to return it and to get it back takes about a twentieth of such a block's time.
RETURNED_BYTES = 1 << 27


@dataclass(frozen=True)
class Block:
    """A decoder block with loaded weights; `layers` and `norms` (modules with a 1-D weight) are keyed by checkpoint names."""

    index: int
    name: str
    module: nn.Module
    layers: Mapping[str, nn.Module]
    norms: Mapping[str, nn.Module] = field(default_factory=dict)


# forward(hidden (sequences, length, hidden)) -> the same shape, after the block; for all windows or the first ones
Forward = Callable[[Tensor], Tensor]
# visit(block, hidden, forward) -> the input hidden states of the next block
Visit = Callable[[Block, Tensor, Forward], Tensor]


def window_by_window(forward: Forward) -> Forward:
    """Return a forward that runs one window at a time, for computations with one scale per window."""
    return lambda hidden: torch.cat([forward(window) for window in hidden.split(1)])


def run_plainly(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
    """Run the block unchanged: the default visitor."""
    return forward(hidden)


def _dims(module: nn.Module) -> int:
    """Return 2 for a layer, 1 for a norm, 0 for an embedding or a module without a weight."""
    weight = getattr(module, "weight", None)
    return weight.dim() if isinstance(weight, Tensor) and not isinstance(module, nn.Embedding) else 0


def _slice(value: object, start: int, stop: int, sequences: int, heads: int) -> object:
    """Return the part of a block's argument that belongs to some windows; arguments without a batch dimension are unchanged.

    ALiBi biases have a row for each head of each window: (sequences x heads, 1, length).
    """
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == sequences:
        return value[start:stop]
    if isinstance(value, Tensor) and value.dim() == 3 and value.shape[0] == sequences * heads:
        return value[start * heads : stop * heads]
    if isinstance(value, tuple):
        return tuple(_slice(item, start, stop, sequences, heads) for item in value)
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
    # Whether windows of a text begin with BOS: auto, always or never.
    bos: str = "auto"
    block_forwards: int = field(default=0, init=False)
    tokens_forwarded: int = field(default=0, init=False)
    _sequences: int = field(default=0, init=False)
    _warned_of_length: bool = field(default=False, init=False)
    # How many values a family's blocks return after the hidden states; -1: a plain tensor. None before a block has run.
    _beside: int | None = field(default=None, init=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return self.module.get_submodule(self.block_list)

    def stored_name(self, name: str) -> str | None:
        """Return the checkpoint's name of a parameter of the module; None if it is tied to another or absent."""
        loading = self.checkpoint.loading
        return stored_name(loading.names, loading.parameters, self.module.base_model_prefix, name)

    @property
    def table_name(self) -> str:
        """The checkpoint's name of the token embedding, which a tied checkpoint may store as the output matrix."""
        table = self.module.get_input_embeddings()
        name = next(n for n, module in self.module.named_modules() if module is table)
        return self.stored_name(f"{name}.weight") or self.checkpoint.loading.output or f"{name}.weight"

    def run(
        self,
        tokens: Tensor,
        visit: Visit = run_plainly,
        blocks: range | None = None,
        hidden: Tensor | None = None,
        differentiable: bool = False,
        embedded: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the final hidden states, after the last norm, of `tokens` (sequences, length) int64.

        Every block is loaded once, and `visit` runs it. The result has shape (sequences, length, hidden) and the walk's dtype.

        - `blocks`: only these are loaded and visited; the others return their input.
        - `hidden`: the input of the first block, instead of the embedding's output.
        - `differentiable`: records gradients.
        - `embedded`: replaces rows of the embedding (rows, hidden), for example by quantized ones.
        """
        # If the embedding's output is not used, one row of the table is enough.
        rows, inverse = torch.unique(tokens if hidden is None else torch.zeros_like(tokens), return_inverse=True)
        self.check_length(tokens.shape[1])
        self._sequences = len(tokens)
        table = self.module.get_input_embeddings()
        embeddings = self._table_rows(rows)
        table.weight = self._parameter(embedded(embeddings) if embedded and hidden is None else embeddings)
        hook = table.register_forward_pre_hook(lambda module, args: (inverse.to(self.device),))
        visited = range(len(self.blocks)) if blocks is None else blocks
        for index, block in enumerate(self.blocks):
            called = self._visit_block if index in visited else self._pass_over
            block.forward = partial(called, index, block, visit, hidden if index == 0 else None)
        try:
            with torch.enable_grad() if differentiable else torch.inference_mode():
                output = self.module.base_model(
                    input_ids=tokens.to(self.device), use_cache=False, **self._positions(tokens)
                )
        finally:
            hook.remove()
            table.weight = nn.Parameter(torch.empty_like(table.weight, device="meta"), requires_grad=False)
            for block in self.blocks:
                block.__dict__.pop("forward", None)
            if len(visited):
                return_free_memory()
        return output.last_hidden_state

    def _table_rows(self, rows: Tensor) -> Tensor:
        """Return the embeddings of some tokens. Raises `UserError` for a token without a row, and for NaN in a row."""
        folder, name = self.checkpoint.folder, self.table_name
        shape = self._stored(name).shape
        check_tokens(rows, shape[0], f"{folder}: {name}")
        embeddings = self.checkpoint.read_rows(name, rows)
        check_read({name: embeddings}, self.checkpoint)
        return embeddings

    def _stored(self, name: str) -> TensorInfo:
        """Return the header entry of a tensor. Raises `UserError` if the checkpoint lacks it."""
        if name not in self.checkpoint.tensors:
            raise user_error("MODEL-NO-TENSOR", self.checkpoint.folder, f"lacks the tensor {name}", OF_WEIGHTS)
        return self.checkpoint.tensors[name]

    def check_length(self, length: int) -> None:
        """Raise `UserError` for windows longer than a table of learned positions; for other models warn once."""
        table, most = self.module.get_input_embeddings(), getattr(self.module.config, "max_position_embeddings", None)
        learned = any(
            isinstance(part, nn.Embedding) and part is not table and not name.startswith(f"{self.block_list}.")
            for name, part in self.module.named_modules()
        )
        if learned and most is not None and length > most:
            what = f"{length} tokens per window exceed the model's {most} positions"
            raise user_error("TEXT-WINDOW-TOO-LONG", "--length", what, f"Use --length {most} or less")
        if isinstance(most, int) and length > most and not self._warned_of_length:
            self._warned_of_length = True
            what = (
                "windows of %d tokens exceed the %d positions that the model was trained on (max_position_embeddings)"
            )
            log.warning("%s: their results are not meaningful; use --length %d or less", what % (length, most), most)

    def _positions(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return positions 0, 1, 2 ... as an argument for families that take them; those with ALiBi do not."""
        if "position_ids" not in inspect.signature(self.module.base_model.forward).parameters:
            return {}
        return {"position_ids": torch.arange(tokens.shape[1], device=self.device).unsqueeze(0)}

    def parameter(self, name: str) -> nn.Parameter:
        """Return a tensor of the checkpoint as a parameter. Raises KeyError for an unknown name."""
        tensors = self.checkpoint.read([name], self.dtype)
        check_read(tensors, self.checkpoint)
        return self._parameter(tensors[name])

    def _parameter(self, tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.to(device=self.device, dtype=self.dtype), requires_grad=False)

    def _visit_block(
        self,
        index: int,
        module: nn.Module,
        visit: Visit,
        start: Tensor | None,
        hidden: Tensor,
        *args: object,
        **kwargs: object,
    ) -> Tensor | tuple:
        block = self.block_(index)
        try:
            output = visit(
                block, hidden if start is None else start, partial(self._in_batches, index, module, args, kwargs)
            )
            return self._as_returned(output)
        finally:
            self.drop_(module)

    def _pass_over(
        self,
        index: int,
        module: nn.Module,
        visit: Visit,
        start: Tensor | None,
        hidden: Tensor,
        *args: object,
        **kwargs: object,
    ) -> Tensor | tuple:
        """Return the hidden states unchanged, in the form in which the family's blocks return them (found by running one once)."""
        if self._beside is None:
            self.block_(index)
            try:
                self._in_batches(index, module, args, kwargs, hidden[:1])
            finally:
                self.drop_(module)
        return self._as_returned(hidden if start is None else start)

    def _as_returned(self, hidden: Tensor) -> Tensor | tuple:
        return hidden if self._beside in (None, -1) else (hidden, *[None] * self._beside)

    def block_(self, index: int) -> Block:
        """Load the weights of a block and return it."""
        name, module = f"{self.block_list}.{index}", self.blocks[index]
        self.load_(name, module)
        named = [(self._layer_name(f"{name}.{inner}"), part) for inner, part in module.named_modules() if _dims(part)]
        layers, norms = ({called: part for called, part in named if _dims(part) == dims} for dims in (2, 1))
        return Block(index, name, module, layers, norms)

    def _layer_name(self, name: str) -> str:
        return (self.stored_name(f"{name}.weight") or f"{name}.weight").removesuffix(".weight")

    def _in_batches(self, index: int, module: nn.Module, args: tuple, kwargs: dict, hidden: Tensor) -> Tensor:
        """Return the block's hidden states; record how many other values the block returns.

        Raises `UserError` if they are not all finite.
        """
        sequences, length = hidden.shape[:2]
        called_with = self._sequences
        step = max(1, self.tokens_per_batch // length)
        self.block_forwards += 1
        self.tokens_forwarded += sequences * length
        outputs = torch.empty_like(hidden)
        heads = getattr(self.module.config, "num_attention_heads", 1)
        for start in range(0, sequences, step):
            stop = min(start + step, sequences)
            some = {key: _slice(value, start, stop, called_with, heads) for key, value in kwargs.items()}
            rest = [_slice(value, start, stop, called_with, heads) for value in args]
            output = type(module).forward(module, hidden[start:stop], *rest, **some)
            outputs[start:stop] = output[0] if isinstance(output, tuple) else output
            self._beside = len(output) - 1 if isinstance(output, tuple) else -1
            self._check_states(index, outputs[start:stop])
        return outputs

    def _check_states(self, index: int, hidden: Tensor) -> None:
        """Raise `UserError`, which names the block and what to do, unless the hidden states are all finite."""
        if hidden.isfinite().all():
            return
        dtype = next(name for name, kind in DTYPES.items() if kind == self.dtype)
        hint = (
            "Use --dtype bf16 or fp32"
            if dtype == "fp16"
            else "Check the weights of this block and the blocks before it"
        )
        raise user_error(
            "MODEL-OVERFLOW", self.checkpoint.folder, f"block {index} overflows {dtype}: its output is not finite", hint
        )

    def load_(self, prefix: str, module: nn.Module) -> None:
        """Load the weights of `module` from the checkpoint. Raises `UserError` for a missing tensor or a wrong shape."""
        stored = {inner: self.stored_name(f"{prefix}.{inner}") for inner, _ in module.named_parameters()}
        self._load_buffers_(prefix, module)
        absent = [f"{prefix}.{inner}" for inner, name in stored.items() if name is None]
        if absent:
            raise user_error("MODEL-NO-TENSOR", self.checkpoint.folder, f"lacks the tensor {absent[0]}", OF_WEIGHTS)
        tensors = self.checkpoint.read(stored.values(), self.dtype)
        check_read(tensors, self.checkpoint)
        for inner, name in stored.items():
            owner, _, leaf = inner.rpartition(".")
            place = module.get_submodule(owner)
            if tensors[name].shape != getattr(place, leaf).shape:
                expected = tuple(getattr(place, leaf).shape)
                what = f"{name} has shape {tuple(tensors[name].shape)}, config.json asks for {expected}"
                raise user_error("MODEL-BAD-SHAPE", self.checkpoint.folder, what, OF_WEIGHTS)
            setattr(place, leaf, self._parameter(tensors.pop(name)))

    def _load_buffers_(self, prefix: str, module: nn.Module) -> None:
        """Load the buffers of `module` that the checkpoint stores, such as the biases used to choose experts."""
        wide = getattr(self.module, "_keep_in_fp32_modules_strict", None) or ()
        for inner, buffer in list(module.named_buffers()):
            name = self.checkpoint.loading.parameters.get(f"{prefix}.{inner}")
            if name is not None:
                dtype = torch.float32 if any(part in inner for part in wide) else buffer.dtype
                owner, _, leaf = inner.rpartition(".")
                tensors = self.checkpoint.read([name], dtype)
                check_read(tensors, self.checkpoint)
                setattr(module.get_submodule(owner), leaf, tensors[name].to(self.device))

    def drop_(self, module: nn.Module) -> None:
        """Remove the weights of `module`; buffers stay. The memory of a large one returns to the system, that of a small one is used again."""
        freed = 0
        for inner, parameter in list(module.named_parameters()):
            owner, _, leaf = inner.rpartition(".")
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            freed += parameter.nbytes
            setattr(module.get_submodule(owner), leaf, nn.Parameter(empty, requires_grad=False))
        if freed >= RETURNED_BYTES:
            return_free_memory()


def check_tokens(tokens: Tensor, rows: int, table: object) -> None:
    """Raise `UserError` for token ids beyond the last row of the embedding, which the message calls `table`."""
    behind = tokens[tokens >= rows]
    if behind.numel():
        more = f" and {behind.unique().numel() - 1} others" if behind.unique().numel() > 1 else ""
        what = f"has {rows} rows, but the tokenizer produces token {int(behind.max())}{more} , which is out of range"
        hint = "Check that the tokenizer belongs to the weights, or remove its added tokens from the text"
        raise user_error("MODEL-TOKEN-OUT-OF-RANGE", table, what, hint)


def _without_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """Return the checkpoint's model as transformers builds it, with all parameters on the meta device and separate experts.

    Raises `UserError` for a family that transformers does not know.
    """
    from accelerate import init_empty_weights

    module = build(checkpoint.folder, checkpoint.config, init_empty_weights(include_buffers=False), dtype)
    separate_experts_(module)
    return module


def find_blocks(module: nn.Module) -> str:
    """Return the name of the list of decoder blocks. Raises `UserError` if there is none."""
    count = getattr(module.config, "num_hidden_layers", None)
    lists = {
        name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count
    }
    if not lists or not count:
        what = f"has no list of {count or 'num_hidden_layers'} decoder blocks among its modules"
        raise user_error(
            "MODEL-NO-BLOCKS",
            type(module).__name__,
            what,
            "This family cannot be walked block by block: docs/families.md",
        )
    return min(lists, key=len)


def open_model(checkpoint: Checkpoint, dtype: str = "fp32", device: str = "cpu") -> StreamedModel:
    """Return a model without weights in its blocks, embedding and output matrix; everything else is loaded."""
    place = pick_device(device)
    module = _without_weights(checkpoint, DTYPES[dtype])
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, buffer.to(place))
    # The table is reduced to the tokens in use, so an index into the full table has no meaning.
    module.get_input_embeddings().padding_idx = None
    model = StreamedModel(checkpoint, module, DTYPES[dtype], place, find_blocks(module))
    embeddings = (module.get_input_embeddings(), module.get_output_embeddings())
    for name, part in module.named_modules():
        inside = f"{name}.".startswith(f"{model.block_list}.")
        if not inside and part not in embeddings and any(True for _ in part.parameters(recurse=False)):
            model.load_(name, part)
    return model
