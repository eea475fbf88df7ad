"""Times one block of a model, and what else a step consists of, on this machine: the rates of `rates.py`.

Times are processor seconds of this process, which other work on the machine changes little; on a GPU they are seconds. All that is timed is
cut to a few hundred tokens and rows, so that it takes seconds for a model of any size.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitplan.config.settings import SensitivitySettings
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
from bitplan.sensitivity.local_errors import Choice, activation_choices, choice_named, fitting_choices
from bitplan.sensitivity.price_products import LayerCandidates, window_products
from bitplan.statistics.alpha_hill import spectrum
from bitplan.statistics.hessian import InputMoments
from bitplan.workflow.estimate.plan_steps import FACTORS, PRODUCTS
from bitplan.workflow.estimate.rates import QUANTIZE, RESTORE

# Seconds that a timed forward through one block may take, those of the one that is priced, and tokens of both at least.
FORWARD_SECONDS, PRICED_SECONDS, FEWEST_TOKENS = 0.1, 0.02, 64
# Bytes of the changed weights that are timed together: a step holds those of all candidates.
CANDIDATE_BYTES = 10**9
# Values that are quantized, and seconds for which each format is.
QUANTIZED_VALUES, BRIEF = 1 << 16, 0.01
ROUNDED_ROWS, ROUNDED_COLUMNS, FEW_ROWS = 256, 256, 32
ROUNDED_IN = "q6_k"
SPECTRUM_SIDE, MOMENT_TOKENS = 512, 512
# Multiplications of a pass through the output matrix, which is all that a large one allows for `FEWEST_TOKENS`.
SCORED_PRODUCTS = 2 * 10**9
DRAWS = (1, 4)


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

    def of(self, call: Callable[[], object], seconds: float = 0.05) -> float:
        """Return the mean seconds of a call that has run before: the first one, which loads and allocates what others reuse, is not counted.

        It is repeated until that has taken so many seconds.
        """
        call()
        started, calls = self.now(), 0
        while not calls or self.now() - started < seconds:
            call()
            calls += 1
        return max(1e-9, (self.now() - started) / calls)


def candidates(section: SensitivitySettings) -> list[Choice]:
    """Return the candidates of a sensitivity table."""
    palette = (choice_named(name) for name in section.palette)
    return list(dict.fromkeys((*activation_choices(section.activation_scope, section.group_size), *palette)))


def block_rates(model: PreparedModel, tokens: Tensor, choices: Sequence[Choice], clock: Clock) -> dict[str, float]:
    """Return seconds for each token of a forward, of a forward kept for going back, of a draw, of changed weights; and for each byte read.

    tokens: windows (sequences, length), of which so many are used that a forward through a block takes about `FORWARD_SECONDS`. The changed
    weights are those of the `choices`, as many of them as `CANDIDATE_BYTES` hold.
    """
    found: dict[str, float] = {}

    def timed(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        with torch.no_grad():
            found["forward"] = clock.of(lambda: forward(hidden)) / hidden[..., 0].numel()
        return hidden

    def priced(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
        found.update(_backward_rates(model, block, forward, hidden, choices, clock))
        return hidden

    stored = sum(info.nbytes for name, info in model.checkpoint.tensors.items() if _in_first_block(model, name))
    found["read"] = clock.of(lambda: _read_block(model)) / max(1, stored)
    model.model.run(tokens[:1, :FEWEST_TOKENS], timed, range(1))
    windows, length = _cut(tokens, FORWARD_SECONDS / found["forward"])
    model.model.run(tokens[:windows, :length], timed, range(1))
    if choices:
        _, length = _cut(tokens, PRICED_SECONDS / found["forward"])
        model.model.run(tokens[:1, :length], priced, range(1), differentiable=True)
    return found


def _cut(tokens: Tensor, most: float) -> tuple[int, int]:
    """Return how many windows of tokens (sequences, length), and how much of each, are about `most` tokens."""
    length = int(min(tokens.shape[1], max(FEWEST_TOKENS, most)))
    return max(1, min(len(tokens), int(most / length))), length


def _in_first_block(model: PreparedModel, name: str) -> bool:
    first = {layer.name for layer in model.info.quantizable if layer.block == 0}
    return name.removesuffix(".weight") in first


def _read_block(model: PreparedModel) -> None:
    model.model.block_(0)
    model.model.drop_(model.model.blocks[0])


def _backward_rates(
    model: PreparedModel, block: Block, forward: Forward, hidden: Tensor, choices: Sequence[Choice], clock: Clock
) -> dict[str, float]:
    """Return the rates of prices: four passes, with few and more draws, with and without changed weights for each layer."""
    layers = [layer for layer in model.info.quantizable if layer.block == 0 and layer.name in block.layers]
    some = choices[: max(1, CANDIDATE_BYTES // (4 * sum(layer.params for layer in layers)))]
    changed = [_changed(block, layer, some) for layer in layers]
    tokens = hidden.shape[1]
    gradients = torch.randn(max(DRAWS), *hidden.shape)

    def seconds(draws: int, candidates: Sequence[LayerCandidates]) -> float:
        return clock.of(lambda: window_products(block, forward, hidden, gradients[:draws], candidates)) / tokens

    few, many = DRAWS
    plain, whole = [seconds(draws, []) for draws in DRAWS], [seconds(draws, changed) for draws in DRAWS]
    draw, every = ((more - less) / (many - few) for less, more in (plain, whole))
    product = (every - draw) / len(some)
    change = (whole[0] - plain[0]) / len(some) - few * product
    rates = {"draw": draw, "product": product, "gradient": plain[0] - few * draw, "change": change}
    return {key: max(0.0, value) for key, value in rates.items()}


def _changed(block: Block, layer: Layer, choices: Sequence[Choice]) -> LayerCandidates:
    weight = weight_of(block.layers[layer.name], layer).detach().to(torch.float32)
    own = list(fitting_choices(choices, layer.shape[1]))
    return LayerCandidates(layer, weight, own, [weight * 1.001] * len(own))


def score_rates(model: PreparedModel, tokens: Tensor, clock: Clock) -> dict[str, float]:
    """Return the seconds of a token scored with KL and without, and of a token's label drawn and taken back to the last hidden states."""
    from bitplan.evaluate.perplexity import hidden_nll
    from bitplan.evaluate.scores import hidden_logits, score
    from bitplan.sensitivity.label_draws import drawn_gradients

    config = model.model.module.config
    most = max(FEWEST_TOKENS, SCORED_PRODUCTS // (config.hidden_size * config.vocab_size))
    some = tokens[:1, : most + 1]
    hidden = torch.randn(1, some.shape[1], config.hidden_size)
    reference = reference_of_tokens(model.checkpoint, some, hidden, model.dtype)
    head = reference.head.read(model.model.device)
    scored, draws, generator = some.shape[1] - 1, max(DRAWS), torch.Generator()
    return {
        "score": clock.of(lambda: score(reference, head, hidden_logits(hidden, head))) / scored,
        "nll": clock.of(lambda: hidden_nll(reference.tokens, hidden, head)) / scored,
        "label": clock.of(lambda: drawn_gradients(head, hidden[0], draws, generator)) / (scored * draws),
    }


def _weight(model: PreparedModel, layer: Layer) -> Tensor:
    stored = model.checkpoint.read([f"{layer.name}.weight"], torch.float32)[f"{layer.name}.weight"]
    return stored.T.contiguous() if layer.transposed else stored


def quantize_rates(weight: Tensor, formats: Iterable[str], importance: bool, clock: Clock) -> dict[str, float]:
    """Return the seconds of a value quantized and read back in each format, and read back alone, on rows of a weight (out, in)."""
    some, columns = weight[: max(1, QUANTIZED_VALUES // weight.shape[1])], weight.shape[1]
    found = {}
    for name in formats:
        form = FORMATS.get(fitting_format(name, columns))
        if form is None or form.name == UNQUANTIZED:
            continue
        squares = torch.ones(columns) if importance and uses_importance(form.name) else None
        group = form.group(None)
        kept = form.pack(form.quantize(some, group, squares))
        both = clock.of(lambda form=form, squares=squares: form.roundtrip(some, form.group(None), squares), BRIEF)
        back = clock.of(lambda form=form, kept=kept, group=group: form.dequantize(kept, group), BRIEF)
        found |= {f"{QUANTIZE}{form.name}": both / some.numel(), f"{RESTORE}{form.name}": back / some.numel()}
    return found


def moment_rate(columns: int, multiply: float, clock: Clock) -> float:
    """Return the seconds of a value of an input whose moments are added up, without the product of its columns."""
    inputs, moments = torch.randn(MOMENT_TOKENS, columns), InputMoments.empty(columns, torch.device("cpu"))
    whole = clock.of(lambda: moments.add_(inputs)) / inputs.numel()
    return max(0.0, whole - multiply * columns)


def rounding_rates(weight: Tensor, rates: Mapping[str, float], clock: Clock) -> dict[str, float]:
    """Return the seconds of a column, and of a value, of a weight that is rounded with feedback and two descents.

    Products of matrices and quantizers, which `rates` has, are no part of them.
    """
    columns = min(weight.shape[1], ROUNDED_COLUMNS)
    name = fitting_format(ROUNDED_IN, columns)
    name = name if name in GRIDS else "q4_0" if columns % 32 == 0 else "int4"
    form, inputs = FORMATS[name], torch.randn(2 * columns, columns)
    hessian = inputs.T @ inputs
    wide = weight[:ROUNDED_ROWS, :columns].contiguous()
    narrow = wide[:FEW_ROWS]

    def seconds(rows: Tensor) -> float:
        layer = LayerToRound("", rows, hessian, form, form.group(32))
        known = PRODUCTS * rows.numel() * columns * rates["multiply"] + 2 * rows.numel() * quantized
        return clock.of(lambda: round_layer(layer, FEEDBACK)) - known - FACTORS * columns**3 * rates["multiply"]

    squares = torch.ones(columns) if uses_importance(name) else None
    quantized = clock.of(lambda: form.roundtrip(wide, form.group(32), squares)) / wide.numel()
    few, many = seconds(narrow), seconds(wide)
    value = max(0.0, many - few) / max(1, wide.numel() - narrow.numel())
    return {"column": max(0.0, few - value * narrow.numel()) / columns, "rounded": value}


def spectrum_rates(weight: Tensor, clock: Clock) -> dict[str, float]:
    """Return the seconds of a multiplication of two matrices, and of a unit of n^3 of the eigenvalues of one (n, n)."""
    some = weight[:SPECTRUM_SIDE, :SPECTRUM_SIDE].contiguous()
    rows = min(some.shape)
    multiply = clock.of(lambda: some @ some.T) / (some.shape[0] ** 2 * some.shape[1])
    whole = clock.of(lambda: spectrum(some))
    return {"multiply": multiply, "eigenvalues": max(0.0, whole - multiply * rows**2 * max(some.shape)) / rows**3}


def layer_rates(
    model: PreparedModel, formats: Iterable[str], importance: bool, rounded: bool, clock: Clock
) -> dict[str, float]:
    """Return the rates of what is done to weights, timed on the largest layer of the first block."""
    first = [layer for layer in model.info.quantizable if layer.block == model.info.quantizable[0].block]
    weight = _weight(model, max(first, key=lambda layer: layer.params))
    rates = {**quantize_rates(weight, formats, importance, clock), **spectrum_rates(weight, clock)}
    rates["moment"] = moment_rate(weight.shape[1], rates["multiply"], clock)
    return {**rates, **(rounding_rates(weight, rates, clock) if rounded else {"column": 0.0, "rounded": 0.0})}


def text_tokens(model: PreparedModel, text: Path, wanted: int) -> int:
    """Return how many tokens a text has, as far as `wanted`: found on its beginning and continued by its length."""
    from bitplan.reference.text import load_tokenizer, read_text

    whole = read_text(text)
    begin = whole[:20_000]
    count = len(load_tokenizer(model.checkpoint.folder).encode(begin, add_special_tokens=False))
    return min(wanted, int(count * len(whole) / max(1, len(begin)))) if len(whole) > len(begin) else min(wanted, count)
