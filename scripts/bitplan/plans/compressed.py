"""Weights that another step has made: codes with a width of their own for every input channel, a file for each block.

A plan whose layers have the format `channels` stands beside a folder `compressed` with these. For each layer it holds the codes (out, in)
int8, or uint8 with zero points; the channels' widths (in,) uint8; scales (widths, groups, out) float16 and zero points of the same shape;
a bitmap of what is pruned; or, for a layer that is pruned only, its values (out, in) float32.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.core.files import read_json, write_json
from bitplan.core.safetensors_io import opened_tensors, write_tensors

FOLDER = "compressed"
LISTED = "index.json"
HINT = "Run the search again or copy the folder that was written with the plan"
SCALE_BITS, UNQUANTIZED_BITS = 16, 16


@dataclass(frozen=True)
class StoredBits:
    """A layer's size in bits, scales, zero points and the list of widths included: all codes stored, or a bitmap and the codes it leaves."""

    dense: int
    bitmap: int

    @property
    def least(self) -> int:
        """The smaller of both."""
        return min(self.dense, self.bitmap)


@dataclass(frozen=True)
class CompressedLayer:
    """The stored parts of a layer by name, the widths that scales are held for, and the channels of a group (0: unquantized)."""

    parts: Mapping[str, Tensor]
    options: tuple[int, ...] = ()
    group: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.parts["codes" if self.options else "values"].shape)

    @property
    def widths(self) -> Tensor:
        """Bits of each input channel, (in,) int64; 16 where nothing is quantized."""
        held = self.parts.get("widths")
        return torch.full((self.shape[1],), UNQUANTIZED_BITS) if held is None else held.to(torch.int64)

    @property
    def pruned(self) -> Tensor:
        """What is pruned, (out, in) bool."""
        rows, columns = self.shape
        if "pruned" not in self.parts:
            return torch.zeros(rows, columns, dtype=torch.bool)
        bits = np.unpackbits(self.parts["pruned"].numpy(), axis=1, count=columns)
        return torch.from_numpy(bits.astype(bool))

    def weight(self) -> Tensor:
        """Return (code - zero) x scale of each weight, (out, in) float32; exactly 0 where it is pruned."""
        if not self.options:
            return self.parts["values"].to(torch.float32)
        options = torch.searchsorted(torch.tensor(self.options), self.widths)
        groups = torch.arange(self.shape[1]) // self.group
        codes = self.parts["codes"].T.to(torch.float32)
        if "zero" in self.parts:
            codes -= self.parts["zero"][options, groups].to(torch.float32)
        made = codes.mul_(self.parts["scale"][options, groups].to(torch.float32)).T
        return made.masked_fill(self.pruned, 0.0) if "pruned" in self.parts else made

    @property
    def stored_bits(self) -> StoredBits:
        """Its size with and without a bitmap of what is pruned. Only scales that some channel uses are counted."""
        rows, columns = self.shape
        kept = rows - self.pruned.sum(0)
        values, beside = int((self.widths * rows).sum()), self._bits_beside()
        return StoredBits(values + beside, rows * columns + int((self.widths * kept).sum()) + beside)

    def _bits_beside(self) -> int:
        """Return the bits of scales, zero points and widths."""
        if not self.options:
            return 0
        groups = torch.arange(self.shape[1]) // self.group
        used = set(zip(groups.tolist(), self.widths.tolist(), strict=True))
        rows = 1 if self.parts["scale"].shape[2] == 1 else self.shape[0]
        zeros = rows * sum(width for _, width in used) if "zero" in self.parts else 0
        listed = math.ceil(math.log2(len(self.options))) * self.shape[1]
        return SCALE_BITS * rows * len(used) + zeros + listed


def packed_mask(pruned: Tensor) -> Tensor:
    """Return a mask (out, in) as bits, (out, ceil(in / 8)) uint8."""
    return torch.from_numpy(np.packbits(pruned.numpy(), axis=1))


def block_file(folder: Path, block: int) -> Path:
    """Return where the layers of a block are kept."""
    return folder / f"block-{block:05d}.safetensors"


def write_block(folder: Path, block: int, layers: Mapping[str, CompressedLayer], notes: Mapping[str, Any]) -> None:
    """Write the layers of a block, and a note for each (anything that JSON holds)."""
    tensors = {
        f"{name}|{part}": value.contiguous() for name, layer in layers.items() for part, value in layer.parts.items()
    }
    told = {
        name: {"options": layer.options, "group": layer.group, "note": notes[name]} for name, layer in layers.items()
    }
    write_tensors(
        block_file(folder, block), tensors, json.dumps(told)
    )  # in the order of the layers, which the reader keeps


def read_block(path: Path) -> tuple[dict[str, CompressedLayer], dict[str, Any]]:
    """Return the layers of a block's file, and their notes. Raises `UserError` when it is no such file."""
    with opened_tensors(path, "COMPRESSED-INVALID", "a file of compressed layers", HINT) as (handle, text):
        facts = json.loads(text)
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in facts}
        for key in handle.keys():  # noqa: SIM118 (the handle is no mapping)
            name, _, part = key.rpartition("|")
            parts[name][part] = handle.get_tensor(key)
        layers = {
            name: CompressedLayer(parts[name], tuple(told["options"]), told["group"]) for name, told in facts.items()
        }
    return layers, {name: told["note"] for name, told in facts.items()}


@dataclass(frozen=True)
class Compressed:
    """The compressed layers of a model: the folder, and in which of its files each layer is. One block is in memory at a time."""

    folder: Path
    files: Mapping[str, str]
    digest: str

    @cached_property
    def _held(self) -> dict[str, dict[str, CompressedLayer]]:
        return {}

    def layer(self, name: str) -> CompressedLayer:
        """Return a layer. Raises KeyError for one that is not compressed, `UserError` for a file that lacks it."""
        file = self.files[name]
        if file not in self._held:
            self._held.clear()
            self._held[file] = read_block(self.folder / file)[0]
        if name not in self._held[file]:
            raise user_error("COMPRESSED-INCOMPLETE", self.folder / file, f"lacks {name}", HINT)
        return self._held[file][name]

    def weight(self, name: str) -> Tensor:
        """Return a layer's weight (out, in) float32."""
        return self.layer(name).weight()


def finish_folder(partial: Path, folder: Path) -> Compressed:
    """Write the index of a folder of block files and move it to its place, which is replaced. Returns what it holds."""
    files, digest = {}, hashlib.sha256()
    for path in sorted(partial.glob("block-*.safetensors")):
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
        files |= dict.fromkeys(read_block(path)[0], path.name)
    write_json(partial / LISTED, {"files": files, "sha256": digest.hexdigest()})
    for path in partial.iterdir():
        if path.name != LISTED and not path.match("block-*.safetensors"):
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return Compressed(folder, files, digest.hexdigest())


def read_compressed(folder: Path, digest: str | None = None) -> Compressed:
    """Return the compressed layers of a folder. Raises `UserError` when it is none, or has another digest than the plan says."""
    listed = read_json(folder / LISTED, HINT)
    files, told = listed.get("files"), listed.get("sha256")
    plain = isinstance(files, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    )
    if not plain or not isinstance(told, str):
        raise user_error("COMPRESSED-INVALID", folder / LISTED, "is not a list of compressed layers", HINT)
    if digest is not None and told != digest:
        raise user_error("COMPRESSED-OTHER-PLAN", folder, "belongs to another plan", HINT)
    absent = sorted({name for name in files.values() if not (folder / name).is_file()})
    if absent:
        raise user_error("COMPRESSED-INCOMPLETE", folder / absent[0], "does not exist", HINT)
    return Compressed(folder, files, told)
