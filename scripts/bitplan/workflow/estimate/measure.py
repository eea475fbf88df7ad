"""Times one block of a model, and what else a step consists of, on this machine: the rates of `rates.py`.

Times are processor seconds of this process, which other work on the machine changes little; on a GPU they are seconds. All that is timed is
cut to a few hundred tokens and rows, so that it takes seconds for a model of any size.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitplan.formats.facts import UNQUANTIZED, uses_importance
from bitplan.formats.fitting import fitting_format
from bitplan.formats.table import FORMATS
from bitplan.models.layers import Layer
from bitplan.models.walk import Block, Forward
from bitplan.plans.apply import weight_of
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import reference_of_tokens
from bitplan.rounding.columns import LayerToRound
from bitplan.rounding.grids import GRIDS
from bitplan.rounding.layer import FEEDBACK, round_layer
from bitplan.sensitivity.local_errors import Choice
from bitplan.sensitivity.price_products import LayerCandidates, window_products
from bitplan.statistics.alpha_hill import spectrum
from bitplan.workflow.estimate.rates import QUANTIZE

# Seconds that a timed forward through one block may take, and tokens of it at least and at most.
FORWARD_SECONDS, FEWEST_TOKENS = 0.3, 64
QUANTIZED_VALUES = 1 << 17
ROUNDED_ROWS, ROUNDED_COLUMNS, FEW_ROWS = 512, 512, 64
ROUNDED_IN = "q4_k"
SPECTRUM_SIDE = 512
# Tokens of a pass through the output matrix.
SCORED_TOKENS = 128
DRAWS = (1, 3)


@dataclass(frozen=True)
class Clock:
    """Seconds that a call takes: of the processor, or on a GPU of the wall."""

    on_gpu: bool = False

    def now(self) -> float:
        """Return the time in seconds."""
        if self.on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def of(self, call: Callable[[], object], times: int = 1) -> float:
        """Return the shortest of some calls' seconds."""
        found = []
        for _ in range(times):
            started = self.now()
            call()
            found.append(self.now() - started)
        return max(1e-9, min(found))


def block_rates(model: PreparedModel, tokens: Tensor, clock: Clock) -> dict[str, float]:
    """Return seconds for each token of a forward, of a forward kept for going back, of a draw, of changed weights; and for each byte read.

    tokens: windows (sequences, length), of which so many are used that a forward through a block takes about `FORWARD_SECONDS`.
    """
    found: dict[str, float] = {}

    def timed(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        with torch.no_grad():
            found["forward"] = clock.of(lambda: forward(hidden), 2) / hidden[..., 0].numel()
        return hidden

    def priced(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        found.update(_backward_rates(model, block, forward, hidden, clock))
        return hidden

    stored = sum(info.nbytes for name, info in model.checkpoint.tensors.items() if _in_first_block(model, name))
    found["read"] = clock.of(lambda: _read_block(model)) / max(1, stored)
    model.model.run(tokens[:1, :FEWEST_TOKENS], timed, range(1))
    most = FORWARD_SECONDS / found["forward"]
    length = int(min(tokens.shape[1], max(FEWEST_TOKENS, most)))
    model.model.run(tokens[: max(1, int(most / length)), :length], timed, range(1))
    model.model.run(tokens[:1, :length], priced, range(1), differentiable=True)
    return found


def _in_first_block(model: PreparedModel, name: str) -> bool:
    first = {layer.name for layer in model.info.quantizable if layer.block == 0}
    return name.removesuffix(".weight") in first


def _read_block(model: PreparedModel) -> None:
    model.model.block_(0)
    model.model.drop_(model.model.blocks[0])


def _backward_rates(
    model: PreparedModel, block: Block, forward: Forward, hidden: Tensor, clock: Clock
) -> dict[str, float]:
    """Return the rates of prices: four passes, with few and more draws, with and without one changed weight for each layer."""
    layers = [layer for layer in model.info.quantizable if layer.block == 0 and layer.name in block.layers]
    changed = [_changed(block, layer) for layer in layers]
    length = hidden.shape[1]
    seconds = {
        (draws, bool(candidates)): clock.of(
            lambda draws=draws, candidates=candidates: window_products(
                block, forward, hidden, torch.randn(draws, *hidden.shape), candidates
            )
        )
        / length
        for candidates in ([], changed)
        for draws in DRAWS
    }
    few, many = DRAWS
    draw = (seconds[many, False] - seconds[few, False]) / (many - few)
    product = (seconds[many, True] - seconds[few, True]) / (many - few) - draw
    gradient = seconds[few, False] - few * draw
    change = seconds[few, True] - seconds[few, False] - few * product
    return {key: max(0.0, value) for key, value in
            (("draw", draw), ("product", product), ("gradient", gradient), ("change", change))}  # fmt: skip


def _changed(block: Block, layer: Layer) -> LayerCandidates:
    weight = weight_of(block.layers[layer.name], layer).detach().to(torch.float32)
    return LayerCandidates(layer, weight, (Choice("q8_0", UNQUANTIZED),), (weight * 1.001,))


def score_rate(model: PreparedModel, tokens: Tensor, clock: Clock) -> float:
    """Return the seconds of a token through the output matrix, twice, with KL and all else that is scored."""
    from bitplan.evaluate.scores import hidden_logits, score

    some = tokens[:1, : SCORED_TOKENS + 1]
    hidden = torch.randn(1, some.shape[1], model.model.module.config.hidden_size)
    reference = reference_of_tokens(model.checkpoint, some, hidden, model.dtype)
    head = reference.head.read(model.model.device)
    return clock.of(lambda: score(reference, head, hidden_logits(hidden, head))) / (some.shape[1] - 1)


def _weight(model: PreparedModel, layer: Layer) -> Tensor:
    stored = model.checkpoint.read([f"{layer.name}.weight"], torch.float32)[f"{layer.name}.weight"]
    return stored.T.contiguous() if layer.transposed else stored


def quantize_rates(weight: Tensor, formats: Iterable[str], importance: bool, clock: Clock) -> dict[str, float]:
    """Return the seconds of a value quantized and read back in each format, on rows of a weight (out, in)."""
    some, columns = weight[: max(1, QUANTIZED_VALUES // weight.shape[1])], weight.shape[1]
    found = {}
    for name in formats:
        form = FORMATS.get(fitting_format(name, columns))
        if form is not None and form.name != UNQUANTIZED:
            mean_squares = torch.ones(columns) if importance and uses_importance(form.name) else None
            call = lambda form=form, squares=mean_squares: form.roundtrip(some, form.group(None), squares)  # noqa: E731
            found[f"{QUANTIZE}{name}"] = clock.of(call, 2) / some.numel()
    return found


def rounding_rates(weight: Tensor, clock: Clock) -> dict[str, float]:
    """Return the seconds of a column, and of a unit of out x in^2, of a weight that is rounded with feedback and two descents."""
    columns = min(weight.shape[1], ROUNDED_COLUMNS)
    name = fitting_format(ROUNDED_IN, columns)
    name = name if name in GRIDS else "q4_0" if columns % 32 == 0 else "int4"
    form, inputs = FORMATS[name], torch.randn(2 * columns, columns)
    hessian = inputs.T @ inputs
    wide = weight[:ROUNDED_ROWS, :columns].contiguous()
    narrow = wide[:FEW_ROWS]

    def seconds(rows: Tensor) -> float:
        return clock.of(lambda: round_layer(LayerToRound("", rows, hessian, form, form.group(32)), FEEDBACK))

    few, many = seconds(narrow), seconds(wide)
    unit = max(0.0, many - few) / max(1, (len(wide) - len(narrow)) * columns**2)
    return {"column": max(0.0, few - unit * len(narrow) * columns**2) / columns, "sweep": unit}


def spectrum_rate(weight: Tensor, clock: Clock) -> float:
    """Return the seconds of a unit of min(out, in)^2 x max(out, in) of a layer's singular values."""
    some = weight[:SPECTRUM_SIDE, :SPECTRUM_SIDE]
    return clock.of(lambda: spectrum(some)) / (min(some.shape) ** 2 * max(some.shape))


def layer_rates(
    model: PreparedModel, formats: Iterable[str], importance: bool, rounded: bool, clock: Clock
) -> dict[str, float]:
    """Return the rates of what is done to weights, timed on the largest layer of the first block."""
    first = [layer for layer in model.info.quantizable if layer.block == model.info.quantizable[0].block]
    weight = _weight(model, max(first, key=lambda layer: layer.params))
    rounding = rounding_rates(weight, clock) if rounded else {"column": 0.0, "sweep": 0.0}
    return {**quantize_rates(weight, formats, importance, clock), **rounding, "spectrum": spectrum_rate(weight, clock)}


def text_tokens(model: PreparedModel, text: Path, wanted: int) -> int:
    """Return how many tokens a text has, as far as `wanted`: found on its beginning and continued by its length."""
    from bitplan.reference.text import load_tokenizer, read_text

    whole = read_text(text)
    begin = whole[:20_000]
    count = len(load_tokenizer(model.checkpoint.folder).encode(begin, add_special_tokens=False))
    return min(wanted, int(count * len(whole) / max(1, len(begin)))) if len(whole) > len(begin) else min(wanted, count)
