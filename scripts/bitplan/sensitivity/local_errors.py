"""How much each layer's output suffers from a format, measured at the layer, in one walk over calibration text.

`mse` is the mean squared difference of the layer's output on the full-precision model's inputs (per output value), `relative_mse` the
same over the output's own mean square; `weighted_error` is sum_ij m_j (W - W')_ij^2 / out with m_j = mean x_j^2: the mse, were the
columns of the input uncorrelated. All see one layer alone. Candidates with an activation format are measured under smoothing, if any;
the others on the weights as they are. `fisher`, where the loss's gradient g at the output is known, is
sum_t (g_t . dY_t)^2 / 2 per scored token: what the output's change dY does to KL, tokens taken one by one. `tokens` counts those that reached the layer; 0 for an expert that none
reached, whose figures are empty.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.resume import HIDDEN, NOT_SAVED, WalkPosition, WalkProgress
from bitplan.formats.base import Format
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.fitting import fitting_format
from bitplan.formats.pairs import Pair, parse_pair
from bitplan.formats.table import FORMATS
from bitplan.models.experts import has_experts
from bitplan.models.layers import Layer, ModelInfo
from bitplan.models.walk import Block, Forward, StreamedModel, window_by_window
from bitplan.plans.apply import weight_of
from bitplan.plans.smoothing import SmoothGroup, Smoothing
from bitplan.sensitivity.output_gradients import OutputGradients
from bitplan.sensitivity.smooth_factors import checked_groups, groups_of
from bitplan.statistics.inputs import BlockInputs, observe_inputs

COLUMNS = (
    *("layer", "category", "params", "format", "inputs", "group_size", "smoothed", "bytes"),
    *("mse", "relative_mse", "weighted_error", "kld", "kld_se", "kld_from"),
    *("price", "price_se", "fisher", "alpha", "tokens", "asked"),
)
W4 = "int4"
ACTIVATION_BITS = (4, 8)
EDGE_LAYERS = 7
LIMIT, EDGE_LIMIT = 2.5, 1.5


@dataclass(frozen=True)
class Choice(Pair):
    """A candidate for a layer, with what it makes of weights and inputs."""

    @property
    def inputs_change(self) -> bool:
        """Whether the layer's inputs are quantized."""
        return self.aq != UNQUANTIZED

    def weights(
        self,
        weight: Tensor,
        scale: Tensor | None,
        formats: Mapping[str, Format] = FORMATS,
        importance: Tensor | None = None,
    ) -> Tensor:
        """Return Q(W s) of weights (out, in); `importance` (in,) is mean x^2 of the columns of the unsmoothed input."""
        wide = weight if scale is None else weight * scale.to(weight.device)
        columns = (
            importance if importance is None or scale is None else importance / scale.to(importance.device).square()
        )
        return wide if self.wq == UNQUANTIZED else formats[self.wq].roundtrip(wide, self.group_size, columns)

    def activations(self, window: Tensor, scale: Tensor | None, formats: Mapping[str, Format] = FORMATS) -> Tensor:
        """Return Q(X / s) of a window (tokens, in)."""
        given = window if scale is None else window / scale.to(window.device)
        return formats[self.aq].roundtrip(given, self.group_size) if self.inputs_change else given


def choice_named(name: str) -> Choice:
    """Return the candidate of a palette's name, as mxfp4/mxfp8. Raises `UserError` for a name that is none."""
    try:
        return Choice(*astuple(parse_pair(name)))
    except ValueError as error:
        raise user_error(
            "SENSITIVITY-BAD-PALETTE", f"--palette {name}", str(error), "Use weight formats, or weights/inputs pairs"
        ) from None


@dataclass(frozen=True)
class SensitivitySettings:
    """What is measured: the candidates, SmoothQuant's alphas to choose from (none: no smoothing), tokens looked at for each layer."""

    choices: tuple[Choice, ...]
    alphas: tuple[float, ...] = ()
    at_inputs: bool = True
    tokens: int = 2048


def fitting_choices(choices: Sequence[Choice], columns: int) -> dict[Choice, tuple[str, ...]]:
    """Return {candidate of a layer with rows of `columns` values: the weight formats asked for that it stands for}.

    Candidates that fall to the same substitute are one.
    """
    found: dict[Choice, tuple[str, ...]] = {}
    for choice in choices:
        own = replace(choice, wq=fitting_format(choice.wq, columns))
        found[own] = (*found.get(own, ()), choice.wq)
    return found


def with_asked(rows: Sequence[dict[str, Any]], asked: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Return rows with a column of the formats asked for that each stands for, with blanks between them."""
    return [{**row, "asked": " ".join(names)} for row, names in zip(rows, asked, strict=True)]


def activation_choices(scope: str, group_size: int = 128) -> tuple[Choice, Choice]:
    """Return W4A4 and W4A8: weights in groups of `group_size`, activations with a scale per `scope` (tensor or token)."""
    return tuple(Choice(W4, f"int{bits}_{scope}", group_size) for bits in ACTIVATION_BITS)


def each_weight_once(choices: Sequence[Choice], quantize: Callable[[Choice], Tensor]) -> list[Tensor]:
    """Return `quantize(choice)` for each choice, called once for choices whose weights are the same: inputs differ in their format alone."""
    weights: dict[tuple[str, int | None, bool], Tensor] = {}
    keys = [(choice.wq, choice.group_size, choice.inputs_change) for choice in choices]
    for key, choice in zip(keys, choices, strict=True):
        if key not in weights:
            weights[key] = quantize(choice)
    return [weights[key] for key in keys]


def quantized_weights(
    weight: Tensor,
    choices: Sequence[Choice],
    scale: Tensor | None = None,
    formats: Mapping[str, Format] = FORMATS,
    importance: Tensor | None = None,
) -> list[Tensor]:
    """Return Q(W s) float32 (out, in) for each choice, each quantized once; s (in,) is `scale`, and 1 where activations stay whole.

    `importance` (in,) weighs the columns in formats that look at it: GGUF types and the `_mse` rules.
    """
    return each_weight_once(
        choices, lambda choice: choice.weights(weight, scale if choice.inputs_change else None, formats, importance)
    )


def output_errors(
    weight: Tensor,
    windows: Sequence[Tensor],
    choices: Sequence[Choice],
    scale: Tensor | None = None,
    formats: Mapping[str, Format] = FORMATS,
) -> list[float]:
    """Return for each choice mean((Q(X / s) Q(W s)^T - X W^T)^2), over all tokens of the windows and all outputs.

    weight (out, in); windows of inputs (tokens, in), each quantized by itself; s (in,) is `scale`, and 1 for choices that leave
    activations whole.
    """
    exact = [window @ weight.T for window in windows]
    made = quantized_weights(weight, choices, scale, formats)
    return [
        _mean_square(_changes(choice, each, windows, exact, scale, formats))
        for choice, each in zip(choices, made, strict=True)
    ]


def _changes(
    choice: Choice,
    made: Tensor,
    windows: Sequence[Tensor],
    exact: Sequence[Tensor],
    scale: Tensor | None,
    formats: Mapping[str, Format] = FORMATS,
) -> list[Tensor]:
    """Return Q(X / s) Q(W s)^T - X W^T (tokens, out) of each window."""
    smooth = scale if choice.inputs_change else None
    return [
        choice.activations(window, smooth, formats) @ made.T - answer
        for window, answer in zip(windows, exact, strict=True)
    ]


def _mean_square(windows: Sequence[Tensor]) -> float:
    """Return the mean square of all values of some windows."""
    total = sum(window.square().sum(dtype=torch.float64).item() for window in windows)
    return total / sum(window.numel() for window in windows)


def fisher_score(changes: Sequence[Tensor], gradients: Sequence[Tensor]) -> float:
    """Return sum_t (g_t . dY_t)^2 / 2 over tokens, of windows of dY and g, each (tokens, out)."""
    products = (
        (change * gradient).sum(dim=-1, dtype=torch.float64)
        for change, gradient in zip(changes, gradients, strict=True)
    )
    return 0.5 * sum(product.square().sum().item() for product in products)


def weighted_error(weight: Tensor, made: Tensor, mean_square: Tensor) -> float:
    """Return sum_ij m_j (W - W')_ij^2 / out of weights (out, in) and mean squares of the inputs (in,)."""
    squares = (weight - made).square().to(torch.float64)
    return (squares * mean_square.to(squares.device)).sum().item() / len(weight)


def _put_gaussian_(seen: BlockInputs, wanted: int) -> None:
    """Put standard normal numbers in the place of every layer's inputs, of its own; layers that read one norm share them."""
    by_norm: dict[str, list[Tensor]] = {}
    for name, windows in list(seen.samples.items()):
        rows, columns = sum(map(len, windows)), windows[0].shape[1]
        seed = zlib.crc32(seen.norm_of.get(name, name).encode())
        values = torch.randn(min(rows, wanted), columns, generator=torch.Generator().manual_seed(seed))
        seen.samples[name] = [values.to(windows[0].device)]
        seen.absmax[name] = values.abs().amax(0)
        seen.squares[name] = torch.full((columns,), float(seen.tokens[name]), dtype=torch.float64)
        if name in seen.norm_of:
            by_norm.setdefault(seen.norm_of[name], []).append(seen.absmax[name])
    # Experts that no token reached have no inputs: the range is that of the norm's other readers.
    seen.absmax |= {norm: torch.stack(ranges).amax(0) for norm, ranges in by_norm.items()}


def best_groups(
    block: Block, seen: BlockInputs, layers: Mapping[str, Layer], settings: SensitivitySettings
) -> list[SmoothGroup]:
    """Return each group with the alpha under which the candidates' errors, summed over its layers, are smallest."""
    grid = [groups_of(block, seen, layers, alpha, settings.at_inputs) for alpha in settings.alphas]
    if len(grid) <= 1:
        return grid[0] if grid else []
    smoothed = [choice for choice in settings.choices if choice.inputs_change]

    def damage(group: SmoothGroup) -> float:
        """Return the candidates' errors under a group's factors, summed over its layers."""
        held = [layers[name] for name in group.layers if name in seen.samples and not layers[name].protected]
        own = [list(fitting_choices(smoothed, layer.shape[1])) for layer in held]
        return sum(
            sum(output_errors(layer_weight(block, layer), seen.samples[layer.name], choices, group.scale))
            for layer, choices in zip(held, own, strict=True)
        )

    return [min(same, key=damage) for same in zip(*grid, strict=True)]


def layer_weight(block: Block, layer: Layer) -> Tensor:
    """Return the layer's weight as it is loaded, (out, in) float32."""
    return weight_of(block.layers[layer.name], layer).detach().to(torch.float32)


def layer_rows(
    layer: Layer,
    weight: Tensor,
    choices: Sequence[Choice],
    made: Sequence[Tensor],
    seen: BlockInputs,
    scale: Tensor | None,
    gradients: OutputGradients | None = None,
) -> list[dict[str, Any]]:
    """Return a row for every choice of a layer, whose quantized weights are `made`. A layer that no token reached has empty figures."""
    windows, reached = seen.samples.get(layer.name, []), seen.tokens.get(layer.name, 0)
    exact = [window @ weight.T for window in windows]
    signal = _mean_square(exact) if reached else math.nan
    mean_square = seen.squares[layer.name] / reached if reached else None
    rows = []
    for choice, wide in zip(choices, made, strict=True):
        changes = _changes(choice, wide, windows, exact, scale)
        smooth = scale if choice.inputs_change else None
        back = wide if smooth is None else wide / smooth.to(wide.device)
        error = _mean_square(changes) if reached else math.nan
        rows.append(
            {
                **{"layer": layer.name, "category": layer.category, "params": layer.params},
                **{"format": choice.wq, "inputs": choice.aq, "group_size": choice.group_size},
                "smoothed": "" if smooth is None else "yes",
                "bytes": math.ceil(FORMATS[choice.wq].bits_of(layer.shape, choice.group_size) / 8),
                "mse": error,
                "relative_mse": error / signal if signal > 0 else math.nan,
                "weighted_error": math.nan if mean_square is None else weighted_error(weight, back, mean_square),
                "fisher": _fisher(layer.name, changes, gradients, reached),
                "tokens": reached,
            }
        )
    return rows


def _fisher(layer: str, changes: Sequence[Tensor], gradients: OutputGradients | None, reached: int) -> float | None:
    """Return the score per scored token of the text; the sample stands for all tokens that reached the layer."""
    if gradients is None or not reached:
        return None
    sampled = sum(map(len, changes))
    return fisher_score(changes, gradients.windows[layer]) * reached / sampled / gradients.scored


def measure_sensitivity(
    model: StreamedModel,
    info: ModelInfo,
    tokens: Tensor,
    settings: SensitivitySettings,
    random: bool = False,
    importance: Mapping[str, Tensor] = MappingProxyType({}),
    walk: WalkProgress = NOT_SAVED,
) -> tuple[list[dict[str, Any]], Smoothing | None]:
    """Return a row for every quantizable layer and candidate, in model order, and the smoothing they were measured under.

    One walk over `tokens` (sequences, length); with `random` standard normal inputs stand in for the text's. `importance` {layer: (in,)}
    is what weights are quantized with. None for smoothing where the settings have no alpha. A walk that is kept and was stopped is gone
    on with. A layer whose rows do not fit a candidate's format is measured in the one that they fit, once.
    """
    layers = {layer.name: layer for layer in info.layers}
    reached = walk.reached()
    rows: dict[str, list[dict[str, Any]]] = dict(reached.facts.get("rows", {}))
    groups = _groups_of(reached)

    def visit(block: Block, hidden: Tensor, plain: Forward) -> Tensor:
        """Measure the layers of a block, keep how far the walk is, and return the block's output."""
        forward = window_by_window(plain) if has_experts(block.module) else plain
        with observe_inputs(block, settings.tokens) as seen:
            output = forward(hidden)
        if random:
            _put_gaussian_(seen, settings.tokens)
        found = best_groups(block, seen, layers, settings)
        by_layer = {name: group for group in found for name in group.layers}
        for layer in (layers[name] for name in block.layers if not layers[name].protected):
            weight, group = layer_weight(block, layer), by_layer.get(layer.name)
            scale = None if group is None else group.scale
            asked = fitting_choices(settings.choices, layer.shape[1])
            made = quantized_weights(weight, list(asked), scale, importance=importance.get(layer.name))
            found_rows = layer_rows(layer, weight, list(asked), made, seen, scale)
            rows[layer.name] = with_asked(found_rows, list(asked.values()))
        groups.extend(checked_groups(model, block, found, layers, lambda: forward(hidden[:1]), output[:1]))
        walk.keep(block.index + 1, lambda: _kept(output, rows, groups))
        return output

    start = reached.tensors.get(HIDDEN)
    model.run(tokens, visit, range(reached.block, len(model.blocks)), None if start is None else start.to(model.device))
    ordered = [row for layer in info.quantizable for row in rows[layer.name]]
    smoothing = Smoothing(tuple(groups)) if settings.alphas else None
    return with_digest(ordered, smoothing), smoothing


def _kept(
    hidden: Tensor, rows: Mapping[str, Sequence[Mapping[str, Any]]], groups: Sequence[SmoothGroup]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what a walk has found, and the states after its block, as tensors and facts."""
    scales = {f"scale-{i}": group.scale for i, group in enumerate(groups)}
    of_groups = [[group.layers, group.norm, group.offset, group.alpha] for group in groups]
    return {HIDDEN: hidden, **scales}, {"rows": rows, "groups": of_groups}


def _groups_of(reached: WalkPosition) -> list[SmoothGroup]:
    """Return the groups that a walk which was stopped had found."""
    told = enumerate(reached.facts.get("groups", ()))
    return [SmoothGroup(tuple(layers), reached.tensors[f"scale-{i}"], *rest) for i, (layers, *rest) in told]


def with_digest(rows: Sequence[dict[str, Any]], smoothing: Smoothing | None) -> list[dict[str, Any]]:
    """Return rows in which `smoothed` says by which factors: the first digits of their digest."""
    digest = smoothing.short_digest if smoothing else ""
    return [{**row, "smoothed": digest} if row["smoothed"] and digest else row for row in rows]


def sensitivity_ratio(a4: float, a8: float) -> float:
    """Return MSE(W4A4) / MSE(W4A8), the sensitivity of a layer; 1 where both are zero, NaN where a figure is missing."""
    return 1.0 if a4 == a8 == 0 else (math.inf if a8 == 0 else a4 / a8)


def classes(ratios: Sequence[float]) -> list[str]:
    """Return "high" or "low" for each layer in model order: above 2.5, and above 1.5 for the first and last 7."""
    last = len(ratios) - EDGE_LAYERS
    limits = (EDGE_LIMIT if i < EDGE_LAYERS or i >= last else LIMIT for i in range(len(ratios)))
    return ["high" if ratio > limit else "low" for ratio, limit in zip(ratios, limits, strict=True)]
