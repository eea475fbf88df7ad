"""Rounded weights stored with a plan: the parts of every rounded layer in its format, one file per block.

They are in the folder `rounded` next to the plan. A layer's values are decoded from its parts and not rounded again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from bitplan.core.errors import Problem, UserError, user_error
from bitplan.formats.base import Quantized
from bitplan.formats.table import FORMATS
from bitplan.plans.compressed import Compressed, CompressedLayer, block_file, read_block, read_compressed, write_block

FOLDER = "rounded"
HINT = "Round again with scripts/round_model.py, or copy the folder that was written with the plan"


@dataclass(frozen=True)
class RoundedLayer:
    """A layer's parts, the name of their format, and the values per block along `in`."""

    quantized: Quantized
    form: str
    group: int

    def weight(self) -> Tensor:
        """Return the values of the layer, (out, in) float32."""
        return FORMATS[self.form].dequantize(self.quantized, self.group)


def write_rounded(folder: Path, block: int, layers: Mapping[str, RoundedLayer], notes: Mapping[str, Any]) -> None:
    """Write the rounded layers of a block, and a JSON-serializable note for each."""
    stored = {name: CompressedLayer(FORMATS[layer.form].pack(layer.quantized).parts) for name, layer in layers.items()}
    facts = {
        name: {"format": layer.form, "group": layer.group, "shape": layer.quantized.shape, "note": notes[name]}
        for name, layer in layers.items()
    }
    write_block(folder, block, stored, facts)


def read_rounded_block(path: Path) -> tuple[dict[str, RoundedLayer], dict[str, Any]]:
    """Return the rounded layers of a block's file, and their notes. Raises `UserError` if it is not such a file."""
    stored, facts = read_block(path)
    try:
        layers = {
            name: RoundedLayer(Quantized(layer.parts, tuple(facts[name]["shape"])), facts[name]["format"], facts[name]["group"])
            for name, layer in stored.items()
        }  # fmt: skip
        return layers, {name: fact["note"] for name, fact in facts.items()}
    except (KeyError, TypeError) as error:
        raise user_error(path, f"is no file of rounded layers: {error}", HINT) from None


def _formats_in(path: Path) -> dict[str, tuple[str, int]]:
    """Return {layer: (format, block)} from the header of a block's file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            facts = json.loads(handle.metadata()["facts"])
        return {name: (fact["note"]["format"], fact["note"]["group"]) for name, fact in facts.items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise user_error(path, f"is no file of rounded layers: {error}", HINT) from None


@dataclass(frozen=True)
class RoundedModel:
    """The rounded layers of a model, with one block in memory at a time. `rounding` is the requested rounding method."""

    stored: Compressed
    rounding: str

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.stored.folder

    @property
    def digest(self) -> str:
        """SHA-256 of the files."""
        return self.stored.digest

    @cached_property
    def _cache(self) -> dict[str, dict[str, RoundedLayer]]:
        return {}

    def __contains__(self, name: str) -> bool:
        return name in self.stored.files

    def layer(self, name: str) -> RoundedLayer:
        """Return a layer. Raises KeyError if it is not rounded, `UserError` if its file lacks it."""
        file = self.stored.files[name]
        if file not in self._cache:
            self._cache.clear()
            self._cache[file] = read_rounded_block(self.folder / file)[0]
        if name not in self._cache[file]:
            raise user_error(self.folder / file, f"lacks {name}", HINT)
        return self._cache[file][name]

    def weight(self, name: str) -> Tensor:
        """Return a layer's weight (out, in) float32."""
        return self.layer(name).weight()

    def check(self, source: object, formats: Mapping[str, tuple[str, int]]) -> None:
        """Raise `UserError` for every layer of a plan {layer: (format, block)} that was rounded to a different format or block."""
        stored: dict[str, tuple[str, int]] = {}
        for file in sorted(set(self.stored.files.values())):
            stored |= _formats_in(self.folder / file)
        problems = [
            Problem(f"{source}: {name}", f"asks for {_shown(formats[name])}, and was rounded to {_shown(actual)}", HINT)
            for name, actual in stored.items()
            if name in formats and formats[name] != actual
        ]
        if problems:
            raise UserError(problems)


def _shown(choice: tuple[str, int]) -> str:
    return f"{choice[0]} in blocks of {choice[1]}"


def read_rounded(folder: Path, digest: str | None, rounding: str) -> RoundedModel:
    """Return the rounded layers of a folder. Raises `UserError` if it is not such a folder or its digest is not the plan's."""
    return RoundedModel(read_compressed(folder, digest), rounding)


def read_finished_block(folder: Path, block: int) -> tuple[dict[str, RoundedLayer], dict[str, Any]] | None:
    """Return a block's layers and notes from an interrupted run; None if it did not finish the block."""
    path = block_file(folder, block)
    return read_rounded_block(path) if path.exists() else None
