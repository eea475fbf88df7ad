"""The sweep over the columns of a layer: prunes and quantizes one column after another; later columns compensate its error.

This is Optimal Brain Surgeon's update in the order of GPTQ (Frantar et al. 2022, algorithm 1) and SparseGPT (Frantar and Alistarh
2023, algorithm 1). With U the upper Cholesky factor of H^-1, the error e = (w_j - q_j) / U_jj of column j updates the later
columns: w_k -= e U_jk. Weights are stored as (in, out), so that a column is contiguous.
"""

import logging
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.rounding.channel_grid import Grid

log = logging.getLogger(__name__)
MOST_DAMPING = 1e4
# Columns of a product with a triangle that are computed at once.
COLUMNS_AT_ONCE = 512


@dataclass(frozen=True)
class Pruning:
    """Which weights are pruned: a share of all, or the `prunen` least important of every `prunem` adjacent weights in a row."""

    sparsity: float = 0.0
    prunen: int = 0
    prunem: int = 0

    @property
    def active(self) -> bool:
        """Whether any weight is pruned."""
        return bool(self.sparsity or self.prunen)

    def check(self, blocksize: int) -> None:
        """Raise `UserError` for a share outside [0, 1), an invalid n:m pattern, or blocks that split a pattern."""
        if not 0 <= self.sparsity < 1:
            raise user_error(
                "SPARSEGPT-OUT-OF-RANGE",
                "sparsity",
                f"{self.sparsity:g} is out of range",
                "Use a number from 0 to below 1",
            )
        if self.prunen < 0 or self.prunem < 0 or (self.prunen and not self.prunen < self.prunem):
            what = f"{self.prunen}:{self.prunem} is not a valid pattern"
            raise user_error("SPARSEGPT-BAD-PATTERN", "prunen, prunem", what, "Use n below m, e.g. 2:4")
        if self.prunen and blocksize % self.prunem:
            what = f"{blocksize} is not a multiple of prunem {self.prunem}"
            raise user_error("SPARSEGPT-BAD-PATTERN", "blocksize", what, "Use a multiple of prunem")
        if blocksize < 1:
            raise user_error(
                "SPARSEGPT-OUT-OF-RANGE", "blocksize", f"{blocksize} is out of range", "Use 1 or more columns"
            )


@dataclass(frozen=True)
class Factors:
    """U, the upper Cholesky factor of the damped H^-1 (in, in), and the diagonal of H^-1 (in,)."""

    upper: Tensor
    inverse_diagonal: Tensor


def weighted_squares(change: Tensor, hessian: Tensor) -> float:
    """Return tr(D H D^T) of a change (out, in) of weights under a symmetric H (in, in), of which the upper triangle is read."""
    total = 0.0
    for start in range(0, len(hessian), COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, len(hessian))
        some = change[:, start:stop]
        product = some @ hessian[start:stop, start:stop]
        if start:
            product.addmm_(change[:, :start], hessian[:start, start:stop], alpha=2)
        total += product.mul_(some).sum(dtype=torch.float64).item()
    return total


def damped_factors(hessian: Tensor, damping: float) -> Factors | None:
    """Return the factors of H + damping x mean(diag H) x I; None if it is not numerically positive definite.

    Dead columns (H_jj = 0) get 1 on the diagonal. One copy of H is made, in which all is computed.
    """
    return damped_factors_(hessian.clone(memory_format=torch.contiguous_format), damping)


def damped_factors_(hessian: Tensor, damping: float) -> Factors | None:
    """Return `damped_factors` in the memory of a contiguous H, which may be as large as a block of the model and is of no use any more."""
    place = hessian.mT  # column by column, as LAPACK stores matrices: it then works in place
    diagonal = place.diagonal()
    diagonal.add_((diagonal == 0).to(hessian.dtype))
    diagonal.add_(damping * diagonal.mean())
    info = torch.empty((), dtype=torch.int32, device=hessian.device)
    if torch.linalg.cholesky_ex(place, out=(place, info))[1]:
        return None
    inverse_diagonal = torch.cholesky_inverse(place, out=place).diagonal().clone()
    failed = torch.linalg.cholesky_ex(place, upper=True, out=(place, info))[1]
    return None if failed else Factors(place, inverse_diagonal)


def check_hessian(hessian: Tensor, layer: str = "layer") -> None:
    """Raise `UserError` for a Hessian that is not finite."""
    if not torch.isfinite(hessian.diagonal()).all():
        raise user_error(
            "ROUNDING-INPUTS-NOT-FINITE",
            layer,
            "its inputs are NaN or infinite",
            "Check the model, the dtype and the text",
        )


def factorize(hessian: Tensor, percdamp: float, layer: str = "layer") -> Factors:
    """Return the factors of H + percdamp x mean(diag H) x I, with 1 on the diagonal of dead columns (H_jj = 0).

    If that is not numerically positive definite, damping grows tenfold until it is, and the log says so. Raises `UserError` for a
    Hessian that is not finite.
    """
    check_hessian(hessian, layer)
    damping = percdamp
    while (factors := damped_factors(hessian, damping)) is None:
        damping = max(10 * damping, 1e-6)
        if damping > MOST_DAMPING:
            raise user_error(
                "ROUNDING-NO-FACTOR", layer, "its Hessian cannot be factorized", "Use more calibration text"
            )
    if damping != percdamp:
        log.warning("%s: its Hessian has no Cholesky factor; damped by %g of its mean diagonal", layer, damping)
    return factors


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep: values (in, out), codes (in, out) if quantized, and the mask of pruned weights (in, out).

    `loss` is the sum of squares of (w_j - q_j) / U_jj, which equals tr(dW H dW^T) of the total change dW under the damped H.
    """

    values: Tensor
    codes: Tensor | None
    pruned: Tensor
    loss: float


def _smallest(saliency: Tensor, count: int) -> Tensor:
    """Return a mask of exactly `count` smallest values, even with ties."""
    mask = torch.zeros(saliency.numel(), dtype=torch.bool, device=saliency.device)
    mask[torch.topk(saliency.reshape(-1), count, largest=False, sorted=False).indices] = True
    return mask.reshape(saliency.shape)


def _pattern(saliency: Tensor, prunen: int) -> Tensor:
    """Return a mask of the `prunen` smallest values of each output in saliency (m, out)."""
    return torch.zeros_like(saliency, dtype=torch.bool).scatter_(
        0, torch.topk(saliency, prunen, dim=0, largest=False).indices, True
    )


class Columns(Protocol):
    """Rounds the columns of a weight in the order of the sweep."""

    def round_column(self, j: int, column: Tensor, pruned: Tensor, ahead: Tensor) -> Tensor:
        """Return the rounded values (out,) of column j, in which pruned weights are already 0.

        - pruned (out,): the mask of these.
        - ahead (in - j, out): column j and the later columns. Those up to the next multiple of the sweep's blocksize are up to
          date; if j is such a multiple, all are.
        """


@dataclass
class ChannelColumns:
    """Columns with a separate width each: options (in,) are indices into `grid.widths`; codes (in, out) int16 are filled in."""

    grid: Grid
    options: list[int]
    codes: Tensor

    def round_column(self, j: int, column: Tensor, pruned: Tensor, ahead: Tensor) -> Tensor:
        """Return a column's quantized values, exactly 0 for pruned weights, and store its codes."""
        group, option = j // self.grid.group, self.options[j]
        codes = self.grid.codes(column, option, group)
        self.codes[j] = codes.to(self.codes.dtype)
        return self.grid.values(codes, option, group).masked_fill_(pruned, 0.0)


def sweep(
    weight: Tensor, upper: Tensor, pruning: Pruning, grid: Grid | None, options: Tensor | None, blocksize: int = 128
) -> SweepResult:
    """Return the weight (out, in) pruned and quantized; pruned weights stay exactly 0.

    upper (in, in): `Factors.upper`. options (in,): for each column the index of its width in `grid.widths`; without a grid weights
    are only pruned. Exactly floor(sparsity x size) weights are pruned: in each block those with the smallest w^2 / U_jj^2 when the
    sweep reaches it.
    """
    if grid is None:
        return sweep_columns(weight, upper, pruning, None, blocksize)
    codes = torch.zeros(weight.shape[::-1], dtype=torch.int16, device=weight.device)
    columns = ChannelColumns(grid, options.tolist(), codes)
    return replace(sweep_columns(weight, upper, pruning, columns, blocksize), codes=codes)


def sweep_columns(
    weight: Tensor, upper: Tensor, pruning: Pruning, rounding: Columns | None, blocksize: int = 128
) -> SweepResult:
    """Return the weight (out, in) pruned, and rounded column by column with `rounding`, which stores the codes itself."""
    rest = weight.T.clone(memory_format=torch.contiguous_format)  # (in, out)
    columns, rows = rest.shape
    pruned = torch.zeros_like(rest, dtype=torch.bool)
    done, loss = 0, 0.0
    for start in range(0, columns, blocksize):
        stop = min(start + blocksize, columns)
        factor, block = upper[start:stop, start:stop], rest[start:stop]
        if not pruning.prunen and pruning.sparsity:
            saliency = block.square() / factor.diagonal().square().unsqueeze(1)
            count = int(pruning.sparsity * (stop * rows)) - done
            pruned[start:stop], done = _smallest(saliency, count), done + count
        errors = _sweep_block_(rest, start, factor, pruned[start:stop], pruning, rounding)
        loss += errors.square().sum(dtype=torch.float64).item()
        rest[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return SweepResult(rest, None, pruned, loss)


def _sweep_block_(
    rest: Tensor, start: int, factor: Tensor, pruned: Tensor, pruning: Pruning, rounding: Columns | None
) -> Tensor:
    """Replace the block of columns from `start` in rest (in, out) by pruned and rounded values. Returns their errors / U_jj."""
    block = rest[start : start + len(factor)]
    errors = torch.empty_like(block)
    for j in range(len(block)):
        if pruning.prunen and j % pruning.prunem == 0:
            window = block[j : j + pruning.prunem]
            saliency = window.square() / factor.diagonal()[j : j + pruning.prunem].square().unsqueeze(1)
            share = pruning.prunen * len(window) // pruning.prunem
            pruned[j : j + pruning.prunem] = _pattern(saliency, share)
        values = block[j].masked_fill(pruned[j], 0.0) if pruning.active else block[j]
        if rounding is not None:
            values = rounding.round_column(start + j, values, pruned[j], rest[start + j :])
        torch.sub(block[j], values, out=errors[j]).div_(factor[j, j])
        block[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
        block[j] = values
    return errors
