"""Weights compressed by SparseGPT: codes with a separate width for each input channel, one file per block.

They are in the folder `compressed` next to a plan whose layers have the format `per_channel`. For each layer it stores the codes
(out, in) int8, or uint8 with zero points; the channels' widths (in,) uint8; scales (widths, groups, out) float16 and zero points
of the same shape; a bitmap of pruned weights. A layer that is only pruned has its values (out, in) float32 instead.
"""

import hashlib
import json
import logging
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
from bitplan.core.files import read_json, write_aside, write_json

log = logging.getLogger(__name__)
FOLDER = "compressed"
KEY = "made-with.json"
LISTED = "index.json"
HINT = "Search again, or copy the folder that was written with the plan"
SCALE_BITS, UNQUANTIZED_BITS = 16, 16


@dataclass(frozen=True)
class StoredBits:
    """A layer's size in bits with scales, zero points and widths: storing all codes (`dense`), or a bitmap and the unpruned codes."""

    dense: int
    bitmap: int

    @property
    def least(self) -> int:
        """The smaller of the two."""
        return min(self.dense, self.bitmap)


@dataclass(frozen=True)
class CompressedLayer:
    """The stored parts of a layer by name, the widths that have scales, and channels per group (0: unquantized)."""

    parts: Mapping[str, Tensor]
    options: tuple[int, ...] = ()
    group: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return tuple(self.parts["codes" if self.options else "values"].shape)

    @property
    def widths(self) -> Tensor:
        """Bits of each input channel, (in,) int64; 16 if the layer is not quantized."""
        widths = self.parts.get("widths")
        return torch.full((self.shape[1],), UNQUANTIZED_BITS) if widths is None else widths.to(torch.int64)

    @property
    def pruned(self) -> Tensor:
        """The mask of pruned weights, (out, in) bool."""
        rows, columns = self.shape
        if "pruned" not in self.parts:
            return torch.zeros(rows, columns, dtype=torch.bool)
        bits = np.unpackbits(self.parts["pruned"].numpy(), axis=1, count=columns)
        return torch.from_numpy(bits.astype(bool))

    def weight(self) -> Tensor:
        """Return (code - zero) x scale of each weight, (out, in) float32; exactly 0 for pruned weights."""
        if not self.options:
            return self.parts["values"].to(torch.float32)
        options = torch.searchsorted(torch.tensor(self.options), self.widths)
        groups = torch.arange(self.shape[1]) // self.group
        codes = self.parts["codes"].T.to(torch.float32)
        if "zero" in self.parts:
            codes -= self.parts["zero"][options, groups].to(torch.float32)
        values = codes.mul_(self.parts["scale"][options, groups].to(torch.float32)).T
        return values.masked_fill(self.pruned, 0.0) if "pruned" in self.parts else values

    @property
    def stored_bits(self) -> StoredBits:
        """Its size with and without a bitmap of pruned weights. Only scales that some channel uses are counted."""
        rows, columns = self.shape
        unpruned = rows - self.pruned.sum(0)
        values, overhead = int((self.widths * rows).sum()), self._overhead_bits()
        return StoredBits(values + overhead, rows * columns + int((self.widths * unpruned).sum()) + overhead)

    def _overhead_bits(self) -> int:
        """Return the bits of scales, zero points and widths."""
        if not self.options:
            return 0
        groups = torch.arange(self.shape[1]) // self.group
        used = set(zip(groups.tolist(), self.widths.tolist(), strict=True))
        rows = 1 if self.parts["scale"].shape[2] == 1 else self.shape[0]
        zeros = rows * sum(width for _, width in used) if "zero" in self.parts else 0
        listed = math.ceil(math.log2(len(self.options))) * self.shape[1]
        return SCALE_BITS * rows * len(used) + zeros + listed


def pack_mask(pruned: Tensor) -> Tensor:
    """Return a mask (out, in) as bits, (out, ceil(in / 8)) uint8."""
    return torch.from_numpy(np.packbits(pruned.numpy(), axis=1))


def block_file(folder: Path, block: int) -> Path:
    """Return the path of a block's file."""
    return folder / f"block-{block:05d}.safetensors"


def write_block(folder: Path, block: int, layers: Mapping[str, CompressedLayer], notes: Mapping[str, Any]) -> None:
    """Write the layers of a block, and a JSON-serializable note for each."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}|{part}": value.contiguous() for name, layer in layers.items() for part, value in layer.parts.items()
    }
    facts = {
        name: {"options": layer.options, "group": layer.group, "note": notes[name]} for name, layer in layers.items()
    }
    with write_aside(block_file(folder, block)) as aside:
        save_file(tensors, aside, {"facts": json.dumps(facts)})  # the order of the layers is significant


def read_block(path: Path) -> tuple[dict[str, CompressedLayer], dict[str, Any]]:
    """Return the layers of a block's file, and their notes. Raises `UserError` if it is not such a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            facts = json.loads(handle.metadata()["facts"])
            parts: dict[str, dict[str, Tensor]] = {name: {} for name in facts}
            for key in handle.keys():  # noqa: SIM118 (the handle is not a mapping)
                name, _, part = key.rpartition("|")
                parts[name][part] = handle.get_tensor(key)
        layers = {
            name: CompressedLayer(parts[name], tuple(fact["options"]), fact["group"]) for name, fact in facts.items()
        }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise user_error(path, f"is no file of compressed layers: {error}", HINT) from None
    return layers, {name: fact["note"] for name, fact in facts.items()}


@dataclass(frozen=True)
class Compressed:
    """The compressed layers of a model: the folder, and {layer: file}. One block is in memory at a time."""

    folder: Path
    files: Mapping[str, str]
    digest: str

    @cached_property
    def _cache(self) -> dict[str, dict[str, CompressedLayer]]:
        return {}

    def layer(self, name: str) -> CompressedLayer:
        """Return a layer. Raises KeyError if it is not compressed, `UserError` if its file lacks it."""
        file = self.files[name]
        if file not in self._cache:
            self._cache.clear()
            self._cache[file] = read_block(self.folder / file)[0]
        if name not in self._cache[file]:
            raise user_error(self.folder / file, f"lacks {name}", HINT)
        return self._cache[file][name]

    def weight(self, name: str) -> Tensor:
        """Return a layer's weight (out, in) float32."""
        return self.layer(name).weight()


def prepare_folder(partial: Path, digest: str) -> None:
    """Create the folder for blocks; blocks from a run with different settings are removed."""
    made_with = read_json(partial / KEY).get("digest") if (partial / KEY).exists() else None
    if partial.exists() and made_with != digest:
        log.warning("%s: was made with other settings; starting again", partial)
        shutil.rmtree(partial)
    finished = len(list(partial.glob("block-*.safetensors")))
    if finished:
        log.info("%d blocks are done already: %s", finished, partial)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        write_json(partial / KEY, {"digest": digest})
    finally:
        drop_if_empty(partial, KEY)


def drop_if_empty(partial: Path, but: str = "block-*.safetensors") -> None:
    """Remove a folder without files that match `but`: there is nothing to resume from."""
    if not any(partial.glob(but)):
        shutil.rmtree(partial)


def finish_folder(partial: Path, folder: Path) -> Compressed:
    """Write the index of a folder of block files and move it to `folder`, which is replaced. Returns the compressed layers."""
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
    """Return the compressed layers of a folder. Raises `UserError` if it is not such a folder or its digest is not the plan's."""
    listed = read_json(folder / LISTED, HINT)
    files, recorded = listed.get("files"), listed.get("sha256")
    plain = isinstance(files, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    )
    if not plain or not isinstance(recorded, str):
        raise user_error(folder / LISTED, "is no list of compressed layers", HINT)
    if digest is not None and recorded != digest:
        raise user_error(folder, "belongs to another plan", HINT)
    absent = sorted({name for name in files.values() if not (folder / name).is_file()})
    if absent:
        raise user_error(folder / absent[0], "does not exist", HINT)
    return Compressed(folder, files, recorded)
