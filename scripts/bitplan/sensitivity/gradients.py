"""The gradient of the model's own loss at the hidden states between its blocks: one backward pass, block by block.

The labels are drawn from the model's own output distribution p, once for each token, so that the expected square of a directional
derivative is the Fisher information: E[(g . d)^2] / 2 is KL(p || p') to second order, for a change d of what g is the gradient at.
"""

from functools import partial

import torch
from torch import Tensor

from bitplan.core.progress import progress
from bitplan.core.resume import PartialResults, gradient_name, load_states
from bitplan.evaluate.scores import LOGIT_VALUES_AT_ONCE
from bitplan.models.experts import has_experts
from bitplan.models.walk import Block, Forward, StreamedModel, window_by_window
from bitplan.reference.head import Head, StoredHead
from bitplan.sensitivity.output_gradients import gradient_of_inputs

SEED = 0


def final_gradient(head: Head, final: Tensor, generator: torch.Generator) -> Tensor:
    """Return d NLL / d final, of labels drawn from the model, of final hidden states (positions, hidden).

    NLL is summed over all positions but the last, which nothing follows: its gradient is 0.
    """
    found = torch.zeros_like(final, dtype=torch.float32)
    step = max(1, LOGIT_VALUES_AT_ONCE // head.matrix.shape[0])
    for start in range(0, len(final) - 1, step):
        rows = slice(start, min(start + step, len(final) - 1))
        with torch.enable_grad():
            hidden = final[rows].detach().to(torch.float32).requires_grad_()
            logits = head.logits(hidden)
            drawn = torch.multinomial(logits.detach().softmax(dim=-1).cpu(), 1, generator=generator).squeeze(-1)
            loss = torch.nn.functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
            found[rows] = torch.autograd.grad(loss, hidden)[0]
    return found


def _after_last_block(model: StreamedModel, tokens: Tensor, states: Tensor, head: Head) -> Tensor:
    """Return d NLL / d states (sequences, length, hidden) of what the last block gives, through the model's last norm."""
    parts = []
    for window, held in enumerate(states.split(1)):
        generator = torch.Generator().manual_seed(SEED + window)
        with torch.enable_grad():
            given = held.clone().requires_grad_()
            final = model.run(tokens[:1], blocks=range(0), hidden=given, differentiable=True)
            gradient = final_gradient(head, final[0].detach(), generator)
            parts.append(torch.autograd.grad(final, given, gradient.unsqueeze(0).to(final.dtype))[0])
    return torch.cat(parts)


def keep_gradients(model: StreamedModel, tokens: Tensor, head: StoredHead, kept: PartialResults) -> None:
    """Keep the gradient at the states after each block but the first's input, last block first; what is kept is not made again."""
    count = len(model.blocks)
    if not kept.has(gradient_name(count)):
        last = load_states(kept, count, model.device)
        kept.save_tensor(gradient_name(count), _after_last_block(model, tokens, last, head.read(model.device)))
    wanted = [block for block in range(count - 1, 0, -1) if not kept.has(gradient_name(block))]
    for block in progress(wanted, len(wanted), "blocks backward"):
        hidden = load_states(kept, block, model.device)
        visit = partial(_keep_gradient, kept=kept, step=batch_of(model, tokens))
        model.run(tokens, visit, range(block, block + 1), hidden, differentiable=True)


def _keep_gradient(block: Block, hidden: Tensor, forward: Forward, kept: PartialResults, step: int) -> Tensor:
    gradient = kept.tensor(gradient_name(block.index + 1)).to(hidden.device)
    own, size = as_block_runs(block, forward, step)
    kept.save_tensor(gradient_name(block.index), gradient_of_inputs(own, hidden, gradient, size))
    return hidden


def batch_of(model: StreamedModel, tokens: Tensor) -> int:
    """Return how many windows the walk runs at a time."""
    return max(1, model.tokens_per_batch // tokens.shape[1])


def as_block_runs(block: Block, forward: Forward, step: int) -> tuple[Forward, int]:
    """Return the forward of a block and its windows at a time: one where there are experts, who get all tokens in one list."""
    return (window_by_window(forward), 1) if has_experts(block.module) else (forward, step)
