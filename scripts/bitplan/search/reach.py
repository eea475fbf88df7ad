"""Which average bits plans of a palette can have: known from shapes alone, before anything is measured. Needs no torch."""

import math
from collections.abc import Sequence

from bitplan.core.errors import Problem
from bitplan.formats.fitting import fitting_formats
from bitplan.formats.pairs import parse_pair
from bitplan.formats.table import size_of
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.layer_plan import UNQUANTIZED_BITS
from bitplan.search.knapsack.choices import ROUNDING


def not_reached(low: float, high: float, target: float, where: str) -> Problem:
    """Return the problem of average bits that no choice of formats comes down to, naming the range that can be reached."""
    # Rounded up: a hint that is below what can be reached would be refused again.
    hint = f"The palette allows {math.ceil(1e4 * low) / 1e4:.4f} to {high:.4f}: choose a value in this range"
    return Problem("SEARCH-TARGET-OUT-OF-REACH", where, f"no combination of formats reaches {target:g}", hint)


def below_reach(low: float, high: float, target: float, where: str) -> Problem | None:
    """Return the problem of a target below the least that can be reached, naming the range of it; None for one that is reached."""
    return None if target >= low * (1 - ROUNDING) else not_reached(low, high, target, where)


def bits_of_layer(candidate: str, layer: Layer, group_size: int | None = None) -> float:
    """Return the bits that a layer takes in a candidate of a palette, as int4_g32 or mxfp4/mxfp8; `group_size` where its name has none."""
    pair = parse_pair(candidate)
    return size_of(pair.wq).bits_of(layer.shape, pair.group_size or group_size)


def average_bits_reach(info: ModelInfo, palette: Sequence[str], group_size: int | None = None) -> tuple[float, float]:
    """Return the fewest and the most average bits, over all parameters, of the palette's formats that fit each layer's rows.

    Every layer may have any of them; what is outside the blocks has 16 bits.
    """
    fit = [(layer, fitting_formats(palette, layer.shape[1])) for layer in info.quantizable]
    bits = [[bits_of_layer(form, layer, group_size) for form in forms] for layer, forms in fit]
    rest = UNQUANTIZED_BITS * (info.parameters - sum(layer.params for layer in info.quantizable))
    low, high = ((sum(map(end, bits)) + rest) / info.parameters for end in (min, max))
    return low, high
