"""What a change of queries or keys does to the attention's output, which is no linear thing: the softmax is run again.

The change of q_proj's, k_proj's or a fused projection's output reaches the rest of the block through the input of the attention's output projection alone.
So the block is run up to there with the changed output, everything that stands beside it taken from the first run, and the change of that input is what
the gradient there is multiplied with: exact where a first order in the scores is not (q2_k), and without the far interactions that keys have in
a first order.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitplan.models.families import category_of
from bitplan.models.walk import Block, Forward

INTO_SOFTMAX, BESIDE, OUT = ("attn_q", "attn_k", "attn_qkv"), ("attn_v",), "attn_o"


class _ReachedError(Exception):
    """The input of the attention's output projection, of a run that ends there."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given


def attention_of(block: Block) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return {layer: output projection} of the block's queries and keys, and the names of all its layers before the softmax.

    Nothing where a category has several layers, as latent attention has: one of them may read another.
    """
    of_category: dict[str, list[str]] = {}
    for name in block.layers:
        of_category.setdefault(category_of(name), []).append(name)
    known = {category: names for category, names in of_category.items() if category in (*INTO_SOFTMAX, *BESIDE, OUT)}
    if OUT not in known or any(len(names) > 1 for names in known.values()):
        return {}, ()
    before = tuple(names[0] for category, names in known.items() if category != OUT)
    return {known[category][0]: known[OUT][0] for category in INTO_SOFTMAX if category in known}, before


@contextmanager
def _answering(modules: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Let some layers answer with given outputs."""
    for module, output in modules.items():
        module.forward = lambda *args, output=output, **kwargs: output.clone()
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _attended(block: Block, forward: Forward, hidden: Tensor, outputs: Mapping[str, Tensor], out: str) -> Tensor:
    """Return the input of the output projection `out` of a run in which some layers give these outputs."""

    def stop(module: nn.Module, args: tuple) -> None:
        raise _ReachedError(args[0])

    hook = block.layers[out].register_forward_pre_hook(stop)
    try:
        with _answering({block.layers[name]: output for name, output in outputs.items()}):
            forward(hidden)
    except _ReachedError as reached:
        return reached.given
    finally:
        hook.remove()
    raise AssertionError(f"{out} was not called")


@torch.no_grad()
def changed_attention(
    block: Block,
    forward: Forward,
    hidden: Tensor,
    outputs: Mapping[str, Tensor],
    layer: str,
    changed: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Return the change of the output projection's input, (tokens, in) float32, for each change dY (tokens, out) of a layer; None for None.

    hidden (1, length, hidden): the block's input; outputs: those of all layers before the softmax in the plain run.
    """
    out = attention_of(block)[0][layer]
    plain = _attended(block, forward, hidden, outputs, out)
    found: list[Tensor | None] = []
    for dy in changed:
        if dy is None:
            found.append(None)
            continue
        own = outputs[layer] + dy.view(outputs[layer].shape).to(outputs[layer].dtype)
        apart = _attended(block, forward, hidden, {**outputs, layer: own}, out) - plain
        found.append(apart.flatten(0, -2).to(torch.float32))
    return found
