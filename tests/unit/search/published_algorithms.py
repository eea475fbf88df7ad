"""GPTQ and SparseGPT as their papers write them, one column after another, without blocks."""

import math

import torch


def int_rows(weight: torch.Tensor, bits: int):
    """The rounding of INT-b with a float16 scale per row, written out: a function of a column."""
    most = 2 ** (bits - 1) - 1
    scale = (weight.abs().amax(1) / most).to(torch.float16).to(weight.dtype)
    return lambda column: (column / scale).round().clamp(-most, most) * scale


def damped(inputs: torch.Tensor, percdamp: float) -> torch.Tensor:
    hessian = 2 / len(inputs) * inputs.T @ inputs
    return hessian + percdamp * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def gptq(weight: torch.Tensor, inputs: torch.Tensor, bits: int, percdamp: float = 0.01) -> torch.Tensor:
    """GPTQ as equations 2 and 3 of the paper have it: after each column, H^-1 without that column, by Gaussian elimination."""
    weight, rounded = weight.clone(), int_rows(weight, bits)
    inverse = torch.linalg.inv(damped(inputs, percdamp))
    for j in range(weight.shape[1]):
        made = rounded(weight[:, j])
        error = (weight[:, j] - made) / inverse[j, j]
        weight[:, j + 1 :] -= error[:, None] * inverse[j, j + 1 :]
        weight[:, j] = made
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return weight


def sparsegpt(weight: torch.Tensor, inputs: torch.Tensor, sparsity: float, block: int, percdamp: float = 0.01):
    """SparseGPT's algorithm 1 with the mask chosen every `block` columns, again by eliminating one column after another."""
    weight, mask = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
    inverse = torch.linalg.inv(damped(inputs, percdamp))
    remaining = [inverse]
    for j in range(weight.shape[1] - 1):
        held = remaining[-1]
        remaining.append(held - torch.outer(held[:, j], held[j]) / held[j, j])
    for j, held in enumerate(remaining):
        if j % block == 0:
            stop = min(j + block, weight.shape[1])
            diagonal = torch.stack([remaining[k][k, k] for k in range(j, stop)])
            count = math.floor(sparsity * weight.shape[0] * stop) - int(mask.sum())
            saliency = weight[:, j:stop].square() / diagonal
            places = saliency.flatten().argsort()[:count]
            chosen = torch.zeros(saliency.numel(), dtype=torch.bool)
            chosen[places] = True
            mask[:, j:stop] = chosen.view_as(saliency)
        made = weight[:, j].masked_fill(mask[:, j], 0.0)
        error = (weight[:, j] - made) / held[j, j]
        weight[:, j + 1 :] -= error[:, None] * held[j, j + 1 :]
        weight[:, j] = made
    return weight
