"""One layer: count its inputs, then prune it and quantize each input channel to a width of its own.

gpt = SparseGPT(layer, "layer_0", stats)
gpt.quantizer = Quantizer(); gpt.quantizer.configure(bits=4)
gpt.add_batch(inputs, outputs)          # as often as there are batches
gpt.fasterprune(sparsity=0.5, target_avg_bits=4.0, bit_allocation_method="quantile")
gpt.free()
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from bitplan.core.errors import Problem, UserError, nearest, user_error
from bitplan.rounding.channel_grid import UNQUANTIZED_WIDTH, WIDEST, Grid, Quantizer, check_widths
from bitplan.rounding.sweep import Factors, Pruning, SweepResult, factorize, sweep
from bitplan.search.sparsegpt.channel_bits import BIT_OPTIONS, METHODS, by_quantile
from bitplan.search.sparsegpt.report import QuantizationStats
from bitplan.search.sparsegpt.scores import WEIGHTS, check_weights, column_scores, importance
from bitplan.statistics.hessian import InputMoments

log = logging.getLogger(__name__)
UNIFORM = "uniform"
ALLOCATIONS = (*METHODS, UNIFORM)
COLUMNS_AT_ONCE = 64


@dataclass(frozen=True)
class ChannelSettings:
    """How widths are given to channels: the options, the weights of the five scores, quantiles of the plain quantile method."""

    bit_options: tuple[int, ...] = BIT_OPTIONS
    quantiles: tuple[float, ...] | None = None
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))

    def check(self) -> None:
        """Raise `UserError` for widths that do not rise within 2 to 8, quantiles that do not fit them, scores that are none."""
        problems: list[Problem] = []
        options = self.bit_options
        if list(options) != sorted(set(options)) or not options or not all(2 <= width <= 8 for width in options):
            shown = " ".join(map(str, options)) or "nothing"
            problems.append(Problem("bit_options", f"{shown} is no rising list of widths", "Give some from 2 to 8"))
        marks = self.quantiles
        if marks is not None and (len(marks) != len(options) - 1 or list(marks) != sorted(marks)):
            what = f"{len(marks)} quantiles for {len(options)} widths"
            problems.append(Problem("quantiles", what, f"Give {len(options) - 1} rising ones between 0 and 1"))
        if marks is not None and not all(0 <= mark <= 1 for mark in marks):
            problems.append(Problem("quantiles", "some are no shares", "Give numbers between 0 and 1"))
        try:
            check_weights(self.weights, "weights")
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)

    def check_target(self, target: float | None) -> None:
        """Raise `UserError` for an average that the options cannot reach."""
        low, high = min(self.bit_options), max(self.bit_options)
        if target is not None and not low <= target <= high:
            what = f"{target:g} is out of reach"
            raise user_error("target_avg_bits", what, f"The widths {low} to {high} average between these two")


@dataclass(frozen=True)
class Compressed:
    """A compressed weight: values (out, in), and where it is quantized codes (out, in), widths (in,) and the grid they belong to.

    `loss` is tr(dW H dW^T) of the change dW, twice the squared error of the outputs per token; None without compensation.
    """

    values: Tensor
    pruned: Tensor
    loss: float | None
    scores: Tensor
    widths: Tensor | None
    codes: Tensor | None
    grid: Grid | None


def _plain(weight: Tensor, grid: Grid | None, options: Tensor | None, pruning: Pruning) -> SweepResult:
    """Return the weight pruned by magnitude and rounded to nearest: a sweep whose columns do not make up for each other."""
    one = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    return sweep(weight, one, pruning, grid, options)


class SparseGPT:
    """The compression of one layer: `nn.Linear`, or GPT-2's `Conv1D`, whose weight is stored as (in, out).

    `quantizer` says how grids are made; without one the layer is pruned only. `settings` says how widths are chosen.
    """

    def __init__(
        self,
        layer: nn.Module,
        layer_name: str = "layer",
        stats_collector: QuantizationStats | None = None,
        settings: ChannelSettings | None = None,
        moments: InputMoments | None = None,
    ) -> None:
        _check_layer(layer, layer_name)
        self.layer, self.layer_name, self.stats_collector = layer, layer_name, stats_collector
        self.settings = settings or ChannelSettings()
        self.quantizer: Quantizer | None = None
        self._transposed = not isinstance(layer, nn.Linear)
        self.compressed: Compressed | None = None
        # Double precision stays double, half precision is widened.
        self._dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        columns = self._weight().shape[1]
        self.moments = moments or InputMoments.empty(columns, layer.weight.device, self._dtype)

    def _weight(self) -> Tensor:
        """Return the layer's weight as (out, in)."""
        weight = self.layer.weight.detach()
        return weight.T if self._transposed else weight

    def add_batch(self, inputs: Tensor, outputs: Tensor | None = None) -> None:
        """Count a batch of the layer's inputs (..., in); its outputs are not looked at."""
        self.moments.add_(inputs)

    def compute_importance_scores(self, percdamp: float = 0.01) -> Tensor:
        """Return the weighted sum of the five scores of every input channel, (in,) float64; 1 is the mean of each score."""
        self.settings.check()
        weight, factors = self._repaired(percdamp)
        scores = column_scores(weight, self.moments, factors.inverse_diagonal)
        return importance(scores, self.settings.weights).cpu()

    def allocate_bits(self, scores: Tensor, target_avg_bits: float | None = None, method: str = "quantile") -> Tensor:
        """Return the width of every input channel, (in,) int64, for their scores (in,). Raises `UserError` as `fasterprune` does."""
        self.settings.check()
        _check_method(method, METHODS)
        quantizer = self.quantizer or Quantizer(bits=WIDEST)
        return _allocated(self._weight().to(self._dtype), scores, (target_avg_bits, method), quantizer, self.settings)[
            0
        ]

    def fasterprune(
        self,
        sparsity: float = 0.0,
        prunen: int = 0,
        prunem: int = 0,
        target_avg_bits: float | None = None,
        bit_allocation_method: str = "quantile",
        blocksize: int = 128,
        percdamp: float = 0.01,
        compensate: bool = True,
    ) -> Compressed:
        """Prune and quantize the layer in place, and return what was made of it.

        sparsity: share of the weights that become 0, or `prunen` of every `prunem`. target_avg_bits: mean width of the channels;
        absent, the plain quantiles, or the quantizer's own width with "uniform". percdamp: damping in shares of the mean diagonal.
        compensate: whether later columns make up for the errors of earlier ones. Raises `UserError` for settings that do not fit.
        """
        pruning = Pruning(sparsity, prunen, prunem)
        pruning.check(blocksize)
        self.settings.check()
        weight, factors = self._repaired(percdamp)
        widths, scores, grid = self._widths(weight, factors, target_avg_bits, bit_allocation_method)
        options = None if grid is None else torch.searchsorted(torch.tensor(grid.widths), widths)
        if compensate:
            swept = sweep(weight, factors.upper, pruning, grid, options, blocksize)
        else:
            swept = _plain(weight, grid, options, pruning)
        if not torch.isfinite(swept.values).all():
            raise user_error(self.layer_name, "became NaN or infinite", "Raise percdamp, or use more calibration text")
        codes = None if swept.codes is None else swept.codes.T
        self.compressed = Compressed(
            swept.values.T, swept.pruned.T, swept.loss if compensate else None, scores, widths, codes, grid
        )
        self._set_weight_(swept.values.T)
        if self.stats_collector is not None and widths is not None:
            self.stats_collector.add_(self.layer_name, widths.tolist(), scores.tolist())
        return self.compressed

    def _repaired(self, percdamp: float) -> tuple[Tensor, Factors]:
        """Return the weight with 0 in dead columns, and the factors of H; without any input every column counts the same."""
        weight, hessian = self._weight().to(self._dtype).clone(), self.moments.hessian.to(self._dtype)
        if self.moments.tokens == 0:
            log.warning("%s: no token reached it; its columns count the same", self.layer_name)
            return weight, factorize(torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device), percdamp)
        weight[:, hessian.diagonal() == 0] = 0.0
        return weight, factorize(hessian, percdamp, self.layer_name)

    def _widths(
        self, weight: Tensor, factors: Factors, target: float | None, method: str
    ) -> tuple[Tensor | None, Tensor, Grid | None]:
        """Return the width (in,) int64 and the score of every channel, and the grid; None for both without quantization."""
        scores = column_scores(weight, self.moments, factors.inverse_diagonal)
        total = importance(scores, self.settings.weights).cpu()
        _log_scores(self.layer_name, scores, total)
        if self.quantizer is None:
            return None, total, None
        _check_method(method, ALLOCATIONS)
        if method == UNIFORM:
            width = self._uniform_width(target)
            if width == UNQUANTIZED_WIDTH:
                return None, total, None
            return torch.full((weight.shape[1],), width), total, self.quantizer.grid(weight, (width,))
        if self.quantizer.bits == UNQUANTIZED_WIDTH:
            return None, total, None
        widths, grid = _allocated(weight, total, (target, method), self.quantizer, self.settings)
        shown = dict(zip(*(part.tolist() for part in widths.unique(return_counts=True)), strict=True))
        log.debug("%s: widths %s", self.layer_name, shown)
        return widths, total, grid

    def _uniform_width(self, target: float | None) -> int:
        width = self.quantizer.bits if target is None else target
        if width != int(width):
            what = f"{width:g} is no width that all channels can have"
            raise user_error("target_avg_bits", what, "Give a whole number, or another bit_allocation_method")
        check_widths([int(width)], "target_avg_bits")
        return int(width)

    def _set_weight_(self, values: Tensor) -> None:
        stored = values.T if self._transposed else values
        kept = self.layer.weight
        self.layer.weight = nn.Parameter(stored.to(kept.dtype).contiguous(), requires_grad=False)

    def free(self) -> None:
        """Drop the moments and what was made; the layer keeps its compressed weight."""
        self.moments = replace(self.moments, tokens=0, gram=torch.empty(0))
        self.compressed = None


LOOP = "Compress its layers one by one: for name, part in block.named_modules(): if isinstance(part, nn.Linear): SparseGPT(part, name)"


def _check_layer(layer: nn.Module, name: str) -> None:
    """Raise `UserError` unless a module has a matrix of its own; a block has layers that have."""
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2:
        return
    linear = [part for part, module in layer.named_modules() if isinstance(module, nn.Linear)]
    held = f", which holds {len(linear)} linear layers ({', '.join(linear[:3])}...)" if linear else ""
    raise user_error(name, f"is a {type(layer).__name__}{held}, and no single layer with a matrix", LOOP)


def _check_method(method: str, known: Iterable[str]) -> None:
    if method not in known:
        hint = nearest(method, known) or f"Known: {', '.join(known)}"
        raise user_error("bit_allocation_method", f"{method!r} is not known", hint)


def _allocated(
    weight: Tensor,
    scores: Tensor,
    asked: tuple[float | None, str],
    quantizer: Quantizer,
    settings: ChannelSettings,
) -> tuple[Tensor, Grid]:
    """Return the width (in,) int64 of every channel for the target and the method asked for, and the grid of all widths."""
    options, (target, method) = settings.bit_options, asked
    settings.check_target(target)
    grid = quantizer.grid(weight, options)
    if method == "quantile":
        widths = by_quantile(scores.numpy(), options, target, settings.quantiles)
    elif target is None:
        raise user_error("target_avg_bits", f"is what {method} holds, and is absent", "Give it, or use quantile")
    else:
        errors = rounding_errors(weight, grid) if method == "optimal" else np.zeros((0, 0))
        widths = METHODS[method](scores.numpy(), errors, options, target)
    return torch.from_numpy(widths), grid


def _log_scores(name: str, scores: Mapping[str, Tensor], total: Tensor) -> None:
    if log.isEnabledFor(logging.DEBUG):
        shown = {**scores, "importance": total}
        ranges = ", ".join(f"{key} {values.min():.4g}..{values.max():.4g}" for key, values in shown.items())
        log.debug("%s: %s", name, ranges)


def rounding_errors(weight: Tensor, grid: Grid) -> np.ndarray:
    """Return sum_i (W_ij - Q_b(W_ij))^2 of every column in every width of the grid, (in, K) float64."""
    rows, found = weight.T, []
    for start in range(0, len(rows), grid.group):
        group, stop = start // grid.group, min(start + grid.group, len(rows))
        found += [_errors_of(part, grid, group) for part in rows[start:stop].split(COLUMNS_AT_ONCE)]
    return torch.cat(found).cpu().numpy()


def _errors_of(columns: Tensor, grid: Grid, group: int) -> Tensor:
    """Return the squared errors (columns, K) of columns (columns, out) of a group."""
    columns, errors = columns.contiguous(), []
    for option in range(len(grid.widths)):
        made = grid.values(grid.codes(columns, option, group), option, group)
        errors.append(made.sub_(columns).square_().sum(1, dtype=torch.float64))
    return torch.stack(errors, dim=1)
