"""Candidates as error feedback rounds them, for prices: a price needs only W_q - W, however W_q was rounded.

Each layer is rounded once in each format on the inputs that the full-precision model gives it, with the default damping and descents, and nothing
of it is stored. The walk that rounds a plan takes the inputs that the rounded blocks before it give, so that its codes are others, of nearly the same cost.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitplan.formats.table import FORMATS
from bitplan.rounding.columns import DAMPING, LayerToRound
from bitplan.rounding.grids import GRIDS
from bitplan.rounding.layer import DESCENTS, FEEDBACK, round_layer
from bitplan.sensitivity.local_errors import Choice, each_weight_once


def rounded_weights(
    name: str,
    weight: Tensor,
    choices: Sequence[Choice],
    hessian: Tensor,
    scale: Tensor | None = None,
    importance: Tensor | None = None,
) -> list[Tensor]:
    """Return `quantized_weights` of a layer's weight (out, in) in which formats with codes are rounded with error feedback.

    hessian (in, in): of the layer's inputs before smoothing. s (in,) is `scale`, and 1 where activations stay whole.
    """

    def quantize(choice: Choice) -> Tensor:
        factor = scale if choice.inputs_change else None
        if choice.wq in GRIDS:
            return _rounded(name, weight, choice, hessian, factor)
        return choice.weights(weight, factor, importance=importance)

    return each_weight_once(choices, quantize)


@torch.no_grad()
def _rounded(name: str, weight: Tensor, choice: Choice, hessian: Tensor, scale: Tensor | None) -> Tensor:
    form = FORMATS[choice.wq]
    group = form.group(choice.group_size)
    if scale is not None:
        wide = scale.to(weight)
        weight, hessian = weight * wide, hessian / torch.outer(wide, wide)
    layer = LayerToRound(f"{name} in {choice.name}", weight.to(torch.float32), hessian, form, group, DAMPING)
    return layer.values(round_layer(layer, FEEDBACK, DESCENTS).quantized)
