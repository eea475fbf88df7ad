"""Rates of this machine: processor seconds per unit of work, and the units."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bitplan.core.errors import user_error

# What one unit is: docs/scaling.md says how each is timed.
UNITS: Mapping[str, str] = {
    "command": "a command that opens no model",
    "open": "a command that opens the model: Python, its packages, the modules without weights",
    "text": "tokenizer loaded and a text cut into windows",
    "read": "byte of weights read and converted",
    "forward": "token through one block",
    "gradient": "token through one block, kept for going back",
    "draw": "token back through one block for one draw of labels",
    "change": "token through one block's changed weights, for one format of every layer",
    "product": "the same for one draw of labels",
    "score": "token through the output matrix twice, with KL",
    "spectrum": "unit of min(out, in)^2 x max(out, in) of a layer's singular values",
    "column": "column of a layer rounded with feedback",
    "sweep": "unit of out x in^2 of a layer rounded with feedback",
}
QUANTIZE = "quantize:"


@dataclass(frozen=True)
class Rates:
    """Processor seconds for each unit of `UNITS`, and for a value in each format, `quantize:FORMAT`.

    `memory` is the resident memory in bytes of a process that has opened the model; `seconds` what timing took; `fingerprint` the model's.
    """

    fingerprint: str
    seconds_per: Mapping[str, float]
    memory: int
    seconds: float
    threads: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)

    def of(self, unit: str) -> float:
        """Return the seconds of one unit; a format that was not timed costs what the dearest does."""
        if unit.startswith(QUANTIZE) and unit not in self.seconds_per:
            return max((value for key, value in self.seconds_per.items() if key.startswith(QUANTIZE)), default=0.0)
        return self.seconds_per[unit]

    def to_json(self) -> dict[str, Any]:
        """Return the rates for an estimate.json."""
        return asdict(self)


def rates_of(content: Mapping[str, Any], source: object) -> Rates:
    """Return the rates in an estimate.json. Raises `UserError` for a file without them."""
    try:
        rates = Rates(**content["rates"])
        if not set(UNITS) <= set(rates.seconds_per):
            raise KeyError("seconds_per")
    except (KeyError, TypeError) as error:
        raise user_error(
            "ESTIMATE-INVALID", source, f"lacks the rates of an estimate: {error}", "Remove it and estimate again"
        ) from None
    return rates
