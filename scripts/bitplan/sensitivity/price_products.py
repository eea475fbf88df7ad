"""<G, D> of a block's candidates: what a change of a layer's output does to the labels' log-probability, to first order.

With g_t the gradient at the layer's output and dY_t the change of that output, <G, D> = sum_t g_t . dY_t. Where the inputs are quantized too,
dY_t = W_q Q(x_t / s) - W x_t, and the sum is the same. Each change is computed once for all draws of labels: a candidate costs a
layer's forward, a draw a backward through the block, without the gradients of weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bitplan.models.layers import Layer
from bitplan.models.walk import Block, Forward
from bitplan.sensitivity.candidates import changes
from bitplan.sensitivity.layer_calls import LayerCall, calls_of
from bitplan.sensitivity.local_errors import Choice
from bitplan.sensitivity.price_estimate import near
from bitplan.sensitivity.through_attention import attention_of, changed_attention

# Draws whose gradients are held together: each is as large as all of the block's layers' outputs on a window.
DRAWS_AT_ONCE = 4


@dataclass(frozen=True)
class LayerCandidates:
    """A layer's weight (out, in) float32, its choices with their quantized weights Q(W s), and s (in,), None without smoothing."""

    layer: Layer
    weight: Tensor
    choices: Sequence[Choice]
    made: Sequence[Tensor]
    scale: Tensor | None = None

    @cached_property
    def _differences(self) -> list[Tensor | None]:
        """D of choices that leave the input whole; None for the others, and for a choice that changes nothing."""
        pairs = zip(self.choices, self.made, strict=True)
        return [made - self.weight if changes(choice) and not choice.inputs_change else None for choice, made in pairs]

    def changed_outputs(self, given: Tensor) -> list[Tensor | None]:
        """Return dY (tokens, out) of each choice on inputs (tokens, in) of one window; None for a choice that changes nothing."""
        wide = given.to(torch.float32)
        exact = wide @ self.weight.T if any(choice.inputs_change for choice in self.choices) else None
        found: list[Tensor | None] = []
        for choice, made, difference in zip(self.choices, self.made, self._differences, strict=True):
            if choice.inputs_change:
                found.append(choice.activations(wide, self.scale) @ made.T - exact)
            else:
                found.append(None if difference is None else wide @ difference.T)
        return found


def window_products(
    block: Block, forward: Forward, hidden: Tensor, above: Tensor, candidates: Sequence[LayerCandidates]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the gradient at a block's input, (draws, 1, length, hidden), and by layer sums (2, choices, draws) float64.

    The first of the two is <G, D>, a sum over tokens, the second that over products of near tokens (price_estimate.py).

    hidden (1, length, hidden): the block's input in one window; above, shaped as what is returned: the gradient at its output. A layer
    that was not called, as an expert that no token reached, is absent.
    """
    by_name = {each.layer.name: each for each in candidates}
    through, before = attention_of(block)
    beside = (*before, *through.values()) if by_name.keys() & through.keys() else ()
    with torch.enable_grad(), calls_of(block, list(dict.fromkeys((*by_name, *beside)))) as seen:
        given = hidden.detach().clone().requires_grad_()
        output = forward(given)
    with torch.no_grad():
        places = [
            _place(block, forward, hidden, by_name[call.name], call, seen) for call in seen if call.name in by_name
        ]
    found = {
        each.name: torch.zeros(2, len(by_name[each.name].choices), len(above), dtype=torch.float64) for each in places
    }
    wanted, below = [given, *(each.tensor for each in places)], torch.empty_like(above)
    for start in range(0, len(above), DRAWS_AT_ONCE):
        some = range(start, min(start + DRAWS_AT_ONCE, len(above)))
        gradients = []
        for draw in some:
            again = draw < len(above) - 1
            parts = torch.autograd.grad(
                output, wanted, above[draw].to(output.dtype), retain_graph=again, allow_unused=True
            )
            below[draw] = 0 if parts[0] is None else parts[0]
            gradients.append(parts[1:])
        for place, own in zip(places, zip(*gradients, strict=True), strict=True):
            if place.numbers and own[0] is not None:
                _add_products_(found[place.name][..., some.start : some.stop], own, place)
    return below, found


@dataclass(frozen=True)
class _Place:
    """A layer, the tensor whose gradient prices its candidates, and what those of its choices with these numbers change in that tensor.

    changed: (tokens, numbered choices, out), None where no choice changes anything.
    """

    name: str
    tensor: Tensor
    numbers: Sequence[int]
    changed: Tensor | None

    @classmethod
    def of(cls, name: str, tensor: Tensor, changed: Sequence[Tensor | None]) -> "_Place":
        """Return the place of all choices' changes (tokens, out), None for a choice that changes nothing."""
        numbers = [number for number, dy in enumerate(changed) if dy is not None]
        return cls(name, tensor, numbers, torch.stack([changed[each] for each in numbers], dim=1) if numbers else None)


def _place(
    block: Block, forward: Forward, hidden: Tensor, own: LayerCandidates, call: LayerCall, seen: Sequence[LayerCall]
) -> _Place:
    """Return where a layer's candidates are priced.

    It is at the layer's output; for queries and keys what the attention's output projection reads, if each of its layers was called once.
    """
    changed = own.changed_outputs(call.read.detach().flatten(0, -2))
    through, before = attention_of(block)
    out = through.get(call.name)
    calls = [each for each in seen if each.name in (*before, out)]
    if out is None or len(calls) != len(before) + 1:
        return _Place.of(call.name, call.made, changed)
    outputs = {each.name: each.made.detach() for each in calls if each.name != out}
    read = next(each.read for each in calls if each.name == out)
    return _Place.of(call.name, read, changed_attention(block, forward, hidden, outputs, call.name, changed))


def _add_products_(totals: Tensor, gradients: Sequence[Tensor], place: _Place) -> None:
    """Add the sum over tokens of g_t . dY_t, and that over near tokens, of each choice of a place to `totals` (2, choices, draws).

    gradients: of each draw (..., tokens, out). One product of two matrices for each token reads all changes once for these draws, where reading
    them takes most of the time; and one copy to the processor, which makes a GPU wait.
    """
    stacked = torch.stack([gradient.flatten(0, -2).to(torch.float32) for gradient in gradients], dim=1)
    products = torch.bmm(place.changed, stacked.mT).permute(1, 2, 0).cpu()  # (choices, draws, tokens)
    totals[0, place.numbers] += products.sum(-1, dtype=torch.float64)
    totals[1, place.numbers] += near(products)
