"""How a plan becomes a GGUF file: what does not come from the plan or the model."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from bitplan.plans.plan import LayerPlan
    from bitplan.rounding.gguf_codes import TensorCodes


@dataclass(frozen=True)
class GGUFOptions:
    """The settings of an export.

    `unquantized` is the type of layers left at 16 bits. `match` chooses the type for a format that is none: "exact" takes
    the one that holds its codes, even in more bits, "bits" the table's, "distortion" the one whose error on the layer is nearest. `max_error` is the largest squared error, as a share of the
    squares, on weights with a width per channel (30 dB by default, about what 5 bits lose of Gaussian weights). `importance` maps layers to mean x^2 per column (in,) float32; `keys`
    are written besides those of the base file.
    """

    unquantized: str = "f16"
    match: str = "exact"
    max_error: float = 1e-3
    importance: Mapping[str, "np.ndarray"] = field(default_factory=dict)
    keys: Mapping[str, str | float] = field(default_factory=dict)
    threads: int = 1


@dataclass(frozen=True)
class LayerTypes:
    """What replaces the table's types: `types` {layer: type}; in layers of `exact` the type holds the very codes of the plan.

    `reasons` says of other layers why no type holds their codes.
    """

    types: Mapping[str, str] = field(default_factory=dict)
    exact: Container[str] = frozenset()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorContents:
    """What tensors are made of: `importance` by layer; by tensor `factors` of columns, `codes` that are written as they are, and the plan
    of those that are quantized in its own format (`packed`)."""

    importance: Mapping[str, "np.ndarray"] = field(default_factory=dict)
    factors: Mapping[str, "np.ndarray"] = field(default_factory=dict)
    codes: Mapping[str, "TensorCodes"] = field(default_factory=dict)
    packed: Mapping[str, "LayerPlan"] = field(default_factory=dict)


DEFAULTS = GGUFOptions()
AS_THE_TABLE = LayerTypes()
PLAIN = TensorContents()
