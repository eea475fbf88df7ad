"""Counts the work that commands really do, in the units of an estimate, by watching the functions that do it.

Products with changed weights are counted in weights times tokens, an estimate's in tokens and whole blocks.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from unittest.mock import patch

import torch

from bitplan.formats.base import Format
from bitplan.models.walk import StreamedModel
from bitplan.plans.apply import QuantizedWeights
from bitplan.reference.head import Head
from bitplan.rounding import feedback, held_out
from bitplan.rounding.columns import FormatColumns, LayerToRound
from bitplan.sensitivity import passes, prices
from bitplan.statistics import alpha_hill, layer_stats
from bitplan.statistics.hessian import InputMoments


def _forward(model, index, module, args, kwargs, hidden) -> dict[str, float]:
    return {"gradient" if hidden.requires_grad else "forward": hidden[..., 0].numel()}


def _back(block, forward, hidden, above, candidates) -> dict[str, float]:
    changed = sum(each.weight.numel() * len(each.choices) for each in candidates)
    tokens, draws = hidden.shape[1], len(above)
    return {"draw": draws * tokens, "change": changed * tokens, "product": changed * draws * tokens}


def _rows(own, weight, choices, made, seen, scale, gradients=None) -> dict[str, float]:
    # One product with the weight as it is, and one with each candidate.
    return {"change": weight.numel() * (1 + len(choices)) * sum(map(len, seen.samples[own.name]))}


def _labels(head, final, draws, generator, others=()) -> dict[str, float]:
    return {"label": draws * len(final)}


def _logits(head, hidden) -> dict[str, float]:
    return {"logits": len(hidden)}


def _roundtrip(form, values, group_size=None, importance=None) -> dict[str, float]:
    return {f"quantize:{form.name}": values.numel()}


def _quantize(weights, name, weight, choice, smoothing=None) -> dict[str, float]:
    return {f"quantize:{choice.wq}": weight.numel()}


def _nearest(given, importance) -> dict[str, float]:
    return {f"quantize:{given.form.name}": given.weight.numel()}


def _span(columns, start, values) -> dict[str, float]:
    return {f"quantize:{columns.layer.form.name}": values.numel()}


def _rounded(given, factors, importance, tunable=False) -> dict[str, float]:
    return {"column": given.weight.shape[1], "rounded": given.weight.numel()}


def _moments(moments, inputs) -> dict[str, float]:
    return {"moment": inputs.numel()}


def _eigenvalues(weight) -> dict[str, float]:
    return {"eigenvalues": min(weight.shape) ** 3}


# Where a function is looked up, its name, and the work of one call.
WATCHED = (
    (StreamedModel, "_in_batches", _forward),
    (prices, "window_products", _back),
    (prices, "drawn_gradients", _labels),
    (passes, "layer_rows", _rows),
    (Head, "logits", _logits),
    (Format, "roundtrip", _roundtrip),
    (QuantizedWeights, "quantize", _quantize),
    (LayerToRound, "nearest_by", _nearest),
    (FormatColumns, "_find_", _span),
    (feedback, "sweep_layer", _rounded),
    (held_out, "sweep_layer", _rounded),
    (InputMoments, "add_", _moments),
    (layer_stats, "spectrum", _eigenvalues),
    (alpha_hill, "spectrum", _eigenvalues),
)


def _watching(function: Callable, work: Callable, total: Counter) -> Callable:
    @wraps(function)
    def counted(*args, **kwargs):
        # A run of a block that ends at the attention's output projection is part of a change.
        result = function(*args, **kwargs)
        total.update(work(*args, **kwargs))
        return result

    return counted


@contextmanager
def metered() -> Iterator[Counter]:
    """Yield the amounts of work by unit, counted until the context ends."""
    total: Counter = Counter()
    patches = [patch.object(place, name, _watching(getattr(place, name), work, total)) for place, name, work in WATCHED]
    threads = torch.get_num_threads()
    try:
        for each in patches:
            each.start()
        yield total
    finally:
        for each in patches:
            each.stop()
        torch.set_num_threads(threads)
