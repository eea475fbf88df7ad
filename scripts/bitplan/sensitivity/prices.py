"""Prices: the KL of every candidate to second order, from labels drawn from the model and one backward walk over its blocks.

For a change D of a layer's weights and G the gradient of sum_t log p_t(y_t) over a window's T scored tokens, labels y_t drawn from p_t,

    KL per token  ~  1/2 mean over windows and draws of <G, D>^2 / T.

Tokens are summed before the square, so that all interactions between tokens are in it; price_estimate.py says how the noise of that is made less. The walk goes backwards through the kept states, one block
loaded at a time; what it holds besides is the gradient at the block's output, (draws, sequences, length, hidden), replaced by that at its input
window by window. It is kept block by block, and an earlier walk that was stopped is gone on with.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bitplan.core.progress import progress
from bitplan.core.resume import PartialResults, WalkProgress, load_states
from bitplan.evaluate.perplexity import head_under
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.apply_embeddings import embedding_quantizer
from bitplan.reference.head import Head, StoredHead
from bitplan.rounding.layer import NEAREST
from bitplan.sensitivity.candidates import changes
from bitplan.sensitivity.embeddings import EmbeddingCandidate
from bitplan.sensitivity.label_draws import drawn_gradients
from bitplan.sensitivity.local_errors import Choice, fitting_choices, layer_weight, quantized_weights
from bitplan.sensitivity.price_estimate import window_prices
from bitplan.sensitivity.price_products import LayerCandidates, window_products
from bitplan.sensitivity.rounded_candidates import rounded_weights
from bitplan.statistics.shrinkage import HalvedMoments, collect_halves

SEED = 0
ABOVE, HEAD, OF_LAYER = "above", "head", "layer|"
BYTES = 4
# (block) -> by layer its smoothing factors (in,), where it has any
ScalesOf = Callable[[Block], Mapping[str, Tensor]]


@dataclass
class Pricing:
    """A backward walk that prices the `choices` of `layers` as they fit these, and the candidates outside the blocks, with so many draws for each window.

    The kept states of all blocks are there. Weights are quantized with `importance` {layer: (in,)}, or with feedback as `rounding` says. What `memory_limit` bytes leave beside the
    gradients holds the changes of the layers that are looked at together, of one at least: a block goes backwards once for each such group.
    """

    model: StreamedModel
    info: ModelInfo
    tokens: Tensor
    head: StoredHead
    kept: PartialResults
    layers: Sequence[Layer]
    choices: Sequence[Choice]
    draws: int
    scales_of: ScalesOf
    importance: Mapping[str, Tensor] = field(default_factory=dict)
    memory_limit: int = 4 * 10**9
    embeddings: Sequence[EmbeddingCandidate] = ()
    rounding: str = NEAREST
    cost: float = field(default=0.0, init=False)

    def run(self, walk: WalkProgress) -> dict[str, Any]:
        """Return {"prices": {layer: price by choice and window}, "embeddings": price by candidate and window, "block_forwards": cost}.

        A price is in nats per token. A layer that no token reached has none. Block-forwards: 1 for each forward and for each draw's backward
        through a block, and the share of a block's weights for each change of a layer's output.
        """
        count, reached = len(self.model.blocks), walk.reached()
        self.cost = reached.facts.get("cost", 0.0)
        found = {name: values for name, values in reached.tensors.items() if name != ABOVE}
        above = reached.tensors.get(ABOVE)
        if above is None:
            above, found[HEAD] = self._at_the_end()
        for done in progress(range(reached.block, count), count - reached.block, "blocks backward"):
            found |= self._block(count - 1 - done, above)
            walk.keep(done + 1, partial(self._reached, above, found))
        squares, scored = self._outside(above, found.pop(HEAD)).square(), self.tokens.shape[1] - 1
        prices = {}
        for layer in (each for each in self.layers if f"{OF_LAYER}{each.name}" in found):
            whole, near = found[f"{OF_LAYER}{layer.name}"]
            kinds = [choice.aq for choice in self._own(layer)]
            prices[layer.name] = window_prices(whole.square(), near, kinds, scored).tolist()
        outside = squares.mean(1) / (2 * scored)
        return {"prices": prices, "embeddings": outside.tolist(), "block_forwards": self.cost}

    def _reached(self, above: Tensor, found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
        return {ABOVE: above, **found}, {"cost": self.cost}

    # ----------------------------------------------------------------------------------------------------- the end

    def _at_the_end(self) -> tuple[Tensor, Tensor]:
        """Return the gradient after the last block (draws, sequences, length, hidden), and what other output matrices do to the labels."""
        states = load_states(self.kept, len(self.model.blocks), self.model.device)
        head = self.head.read(self.model.device)
        heads = [self._head_of(head, candidate) for candidate in self.embeddings]
        others = [other for other in heads if other is not head]
        above = torch.empty(self.draws, *states.shape, dtype=torch.float32, device=states.device)
        products = torch.zeros(len(heads), self.draws, len(states), dtype=torch.float64)
        changed = [number for number, other in enumerate(heads) if other is not head]
        for window in range(len(states)):
            above[:, window], made = self._of_window(states[window : window + 1], window, [head, *others])
            products[changed, :, window] = made
        return above, products

    def _of_window(self, states: Tensor, window: int, heads: Sequence[Head]) -> tuple[Tensor, Tensor]:
        """Return the gradients (draws, length, hidden) at a window's states after the last block, through the last norm, and the products.

        heads: the model's, and others that change the logits.
        """
        generator = torch.Generator().manual_seed(SEED + window)
        with torch.enable_grad():
            given = states.clone().requires_grad_()
            final = self.model.run(self.tokens[:1], blocks=range(0), hidden=given, differentiable=True)
        gradients, products = drawn_gradients(heads[0], final[0].detach(), self.draws, generator, heads[1:])
        below = [
            torch.autograd.grad(final, given, gradient.unsqueeze(0).to(final.dtype), retain_graph=True)[0][0]
            for gradient in gradients
        ]
        return torch.stack(below).to(torch.float32), products

    def _head_of(self, head: Head, candidate: EmbeddingCandidate) -> Head:
        return head_under(head, candidate.plan, self.info, QuantizedWeights(limit=0))

    # ----------------------------------------------------------------------------------------------------- a block

    def _block(self, index: int, above: Tensor) -> dict[str, Tensor]:
        """Return the products of a block's layers, and put the gradient at its input in the place of that at its output, `above`."""
        found: dict[str, Tensor] = {}
        hidden = load_states(self.kept, index, self.model.device)

        def visit(block: Block, given: Tensor, forward: Forward) -> Tensor:
            """Go back through the block once for each group of layers whose candidates fit into memory together."""
            own = [layer for layer in self.layers if layer.block == index]
            groups = list(self._groups(own, self.memory_limit - above.nbytes)) or [[]]
            scales, moments = self.scales_of(block), self._moments(block, forward, hidden)
            for number, layers in enumerate(groups):
                candidates = [
                    self._candidates(block, layer, scales.get(layer.name), moments.get(layer.name)) for layer in layers
                ]
                self._go_back_(block, forward, hidden, above, candidates, found, replace=number == len(groups) - 1)
            return given

        self.model.run(self.tokens, visit, range(index, index + 1), hidden, differentiable=True)
        return found

    def _go_back_(
        self,
        block: Block,
        forward: Forward,
        hidden: Tensor,
        above: Tensor,
        candidates: Sequence[LayerCandidates],
        found: dict[str, Tensor],
        replace: bool,
    ) -> None:
        """Put the products of a group of layers into `found`, window by window; with `replace` the gradient below into `above`."""
        for window in range(len(hidden)):
            some = slice(window, window + 1)
            below, products = window_products(block, forward, hidden[some], above[:, some], candidates)
            for name, values in products.items():
                empty = torch.zeros(*values.shape, len(hidden), dtype=torch.float64)
                found.setdefault(f"{OF_LAYER}{name}", empty)[..., window] = values
            if replace:
                above[:, some] = below
        weights = sum(module.weight.numel() for module in block.layers.values())
        self.cost += 1 + self.draws
        self.cost += sum(each.weight.numel() * self._changes(each.choices) for each in candidates) / weights

    def _own(self, layer: Layer) -> list[Choice]:
        """Return a layer's candidates: the choices in the formats that its rows fit."""
        return list(fitting_choices(self.choices, layer.shape[1]))

    @staticmethod
    def _changes(choices: Sequence[Choice]) -> int:
        """Number of products of weights and inputs that a layer's changes take: one each, and one for the exact output where inputs change."""
        moved = [choice for choice in choices if changes(choice)]
        return len(moved) + any(choice.inputs_change for choice in moved)

    @torch.no_grad()
    def _moments(self, block: Block, forward: Forward, hidden: Tensor) -> Mapping[str, HalvedMoments]:
        """Return the second moments of the inputs of a block's layers, where candidates are rounded with error feedback."""
        if self.rounding == NEAREST:
            return {}
        return collect_halves(block, hidden, forward)

    def _candidates(
        self, block: Block, layer: Layer, scale: Tensor | None, moments: HalvedMoments | None
    ) -> LayerCandidates:
        weight, own, importance = layer_weight(block, layer), self._own(layer), self.importance.get(layer.name)
        if moments is None:
            made = quantized_weights(weight, own, scale, importance=importance)
        else:
            made = rounded_weights(layer.name, weight, own, moments.hessian, scale, importance)
        return LayerCandidates(layer, weight, own, made, scale)

    def _groups(self, layers: Sequence[Layer], limit: int) -> Iterator[list[Layer]]:
        """Yield groups of layers whose quantized weights and changes are within a limit in bytes, of one layer at least."""
        held, size = [], 0
        for layer in layers:
            own = layer.params * BYTES * 2 * len(self._own(layer))
            if held and size + own > limit:
                yield held
                held, size = [], 0
            held, size = [*held, layer], size + own
        if held:
            yield held

    # ------------------------------------------------------------------------------------------------- outside them

    def _outside(self, above: Tensor, products: Tensor) -> Tensor:
        """Return the products (candidates, draws, sequences) with what an embedding does to the states that block 0 gets."""
        found = products.clone()
        for number, candidate in enumerate(self.embeddings):
            if candidate.layer.token_table:
                change = self._entering(candidate) - load_states(self.kept, 0, self.model.device)
                found[number] += torch.linalg.vecdot(above, change.to(torch.float32)).sum(-1, dtype=torch.float64).cpu()
        return found

    def _entering(self, candidate: EmbeddingCandidate) -> Tensor:
        """Return the states (sequences, length, hidden) that block 0 gets from the candidate's embedding."""
        caught: list[Tensor] = []

        def visit(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
            caught.append(hidden)
            return hidden

        change = embedding_quantizer(candidate.plan, self.info, QuantizedWeights(limit=0))
        self.model.run(self.tokens, visit, range(1), embedded=change)
        return caught[0]
