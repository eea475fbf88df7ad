"""Rates of this machine: processor seconds per unit of work, and the units."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitplan.core.errors import user_error

# What one unit is: docs/scaling.md says how each is timed.
UNITS: Mapping[str, str] = {
    "python": "a command's start: Python, flags, settings",
    "torch": "torch loaded",
    "model": "transformers loaded, and the model's modules built without weights",
    "text": "tokenizer loaded and a text cut into windows",
    "read": "byte of weights read and converted",
    "forward": "token through one block",
    "gradient": "token through one block, kept for going back",
    "draw": "token back through one block for one draw of labels",
    "change": "token through one block's changed weights, for one candidate of every layer",
    "product": "the same for one draw of labels",
    "score": "token through the output matrix twice, with KL",
    "nll": "token through the output matrix, without KL",
    "label": "token's label drawn and taken back to the last hidden states",
    "multiply": "multiplication of two matrices' values",
    "eigenvalues": "unit of n^3 of the eigenvalues of an (n, n) matrix",
    "moment": "value of an input that moments of its column are made of",
    "column": "column of a layer rounded with feedback and two descents",
    "rounded": "value of a layer rounded with feedback and two descents",
}
# With the name of a format behind: a value quantized and read back, and one read back alone.
QUANTIZE, RESTORE = "quantize:", "restore:"


@dataclass(frozen=True)
class Rates:
    """Processor seconds for each unit of `UNITS`, and for a value in each format, `quantize:FORMAT` and `restore:FORMAT`.

    `memory` is the resident memory in bytes of a process that has opened the model, `loaded` that of one that has loaded torch alone; `seconds` what
    timing took; `fingerprint` the model's.
    """

    fingerprint: str
    seconds_per: Mapping[str, float]
    memory: int
    seconds: float
    threads: int = 1
    loaded: int = 0

    def of(self, unit: str) -> float:
        """Return the seconds of one unit; a format that was not timed costs what the dearest does."""
        kind = next((kind for kind in (QUANTIZE, RESTORE) if unit.startswith(kind)), None)
        if kind is None or unit in self.seconds_per:
            return self.seconds_per[unit]
        return max((value for key, value in self.seconds_per.items() if key.startswith(kind)), default=0.0)

    def memory_of(self, work: Mapping[str, float]) -> int:
        """Return the resident memory in bytes of a process that has loaded what some work needs."""
        return self.memory if work.get("model") else self.loaded or self.memory

    def to_json(self) -> dict[str, Any]:
        """Return the rates for an estimate.json."""
        return asdict(self)


def has_units(content: Mapping[str, Any]) -> bool:
    """Return whether the rates in an estimate.json, if it has any, are of all `UNITS`."""
    rates = content.get("rates")
    return not isinstance(rates, Mapping) or set(UNITS) <= set(rates.get("seconds_per", ()))


def rates_of(content: Mapping[str, Any], source: object) -> Rates:
    """Return the rates in an estimate.json. Raises `UserError` for a file without them."""
    try:
        rates = Rates(**content["rates"])
        if not has_units(content):
            raise KeyError("seconds_per")
    except (KeyError, TypeError) as error:
        raise user_error(
            "ESTIMATE-INVALID", source, f"lacks the rates of an estimate: {error}", "Remove it and estimate again"
        ) from None
    return rates
