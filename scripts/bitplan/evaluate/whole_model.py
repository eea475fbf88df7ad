"""A model with all weights in memory, under one plan after another: for evaluations that call it through transformers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitplan.models.layers import ModelInfo, output_tensor_name
from bitplan.models.walk import StreamedModel, check_tokens
from bitplan.plans.apply import QuantizedWeights, quantize_inputs, quantize_weights_
from bitplan.plans.apply_embeddings import quantize_stored_rows
from bitplan.plans.plan import Plan, check_columns


@dataclass
class WholeModel:
    """A transformers model whose blocks, embedding and output matrix take the weights of any plan.

    All other weights are those of the checkpoint.
    """

    streamed: StreamedModel
    info: ModelInfo
    weights: QuantizedWeights

    @property
    def module(self) -> nn.Module:
        """The transformers model."""
        return self.streamed.module

    @contextmanager
    def under(self, plan: Plan) -> Iterator[nn.Module]:
        """Yield the model with the plan's weights and activation formats, until the context ends.

        Raises `UserError` if a format does not fit its layer.
        """
        check_columns(plan, self.info, self.weights.formats)
        layers = {layer.name: layer for layer in self.info.layers}
        with ExitStack() as stack:
            stack.callback(self._guard())
            for index in range(len(self.streamed.blocks)):
                block = self.streamed.block_(index)
                stack.callback(self.streamed.drop_, block.module)
                stack.callback(block.module.register_forward_pre_hook(self._count, with_kwargs=True).remove)
                quantize_weights_(block, plan, layers, self.weights)
                stack.enter_context(quantize_inputs(block, plan, self.weights.formats))
            if plan.embeddings(self.info):
                stack.callback(load_embeddings_, self.streamed)
                quantize_embeddings_(self.streamed, self.info, plan, self.weights)
            yield self.module

    def _guard(self) -> Callable[[], None]:
        """Raise `UserError` for tokens beyond the embedding's last row. Returns the function that removes this check."""
        table, name = self.module.get_input_embeddings(), self.streamed.table_name
        source = f"{self.streamed.checkpoint.folder}: {name}"

        def check(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            check_tokens(args[0], module.weight.shape[0], source)

        return table.register_forward_pre_hook(check).remove

    def _count(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Count the tokens that a block processes, as the walk does."""
        hidden = args[0] if args else kwargs["hidden_states"]
        self.streamed.tokens_forwarded += hidden.shape[0] * hidden.shape[1]


def load_embeddings_(model: StreamedModel) -> None:
    """Load the embedding and the output matrix, which a walk does not need. A tied output shares the embedding's weight."""
    table, output = model.module.get_input_embeddings(), model.module.get_output_embeddings()
    named = {id(part): name for name, part in model.module.named_modules()}
    matrix = output_tensor_name(model.checkpoint)
    table.weight = model.parameter(model.table_name)
    if output is None:
        return
    output.weight = table.weight if matrix == model.table_name else model.parameter(matrix)
    bias = model.stored_name(f"{named[id(output)]}.bias")
    if bias is not None:
        output.bias = model.parameter(bias)


@torch.no_grad()
def quantize_embeddings_(model: StreamedModel, info: ModelInfo, plan: Plan, weights: QuantizedWeights) -> None:
    """Replace embedding and output matrix by the plan's values, quantized from the checkpoint some rows at a time."""
    table, output = model.module.get_input_embeddings(), model.module.get_output_embeddings()
    for layer in plan.embeddings(info):
        stored = model.table_name if layer.token_table else output_tensor_name(model.checkpoint)
        place = table.weight if layer.token_table else output.weight
        if layer.tied and place is table.weight:
            continue
        for part, rows in quantize_stored_rows(model.checkpoint, stored, layer, plan, weights):
            place[part] = rows


def open_whole_model(model: StreamedModel, info: ModelInfo, weights: QuantizedWeights) -> WholeModel:
    """Return the model with its embedding and output matrix loaded. A later walk of `model` drops the embedding again."""
    load_embeddings_(model)
    return WholeModel(model, info, weights)
