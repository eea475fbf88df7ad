"""A checkpoint folder: which tensors it holds, and reading single ones without loading the rest.

Only the headers of the safetensors files are read here (8 bytes of length, then JSON: safetensors format),
so that listing layers needs neither torch nor the weights.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bitplan.core.errors import user_error
from bitplan.core.files import read_json
from bitplan.models.checkpoint_files import INDEX, SETTINGS_AND_TOKENIZER, matching
from bitplan.models.families import BUFFERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 1 << 24
DOWNLOAD_AGAIN = "Download the checkpoint again"
FLOATS = ("F64", "F32", "F16", "BF16")
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a checkpoint: the file it is in, its dtype as safetensors names it, its shape, its bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def params(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.stop - self.start

    def copy_to(self, handle: BinaryIO) -> None:
        """Copy the tensor's bytes, a few MiB at a time."""
        with open(self.file, "rb") as source:
            source.seek(self.start)
            left = self.nbytes
            while piece := source.read(min(left, PIECE)):
                handle.write(piece)
                left -= len(piece)


def _header(file: Path) -> dict[str, TensorInfo]:
    size = file.stat().st_size
    with open(file, "rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise user_error(file, "is cut short: its header is incomplete", DOWNLOAD_AGAIN)
        try:
            entries = json.loads(handle.read(length))
            entries.pop("__metadata__", None)
            held = {name: _tensor_info(file, entry, 8 + length) for name, entry in entries.items()}
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            hint = "Download the checkpoint again, or save it with `save_pretrained`"
            raise user_error(file, "is not a safetensors file: its header is broken", hint) from None
    _check_places(file, held, 8 + length, size)
    return held


def _tensor_info(file: Path, entry: Mapping[str, Any], begin: int) -> TensorInfo:
    """Return an entry of a header. Raises KeyError, TypeError or ValueError for one that safetensors does not allow."""
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if any(type(number) is not int or number < 0 for number in (start, stop, *shape)):
        raise ValueError("sizes and offsets are whole numbers from 0")
    return TensorInfo(file, str(entry["dtype"]), shape, begin + start, begin + stop)


def _check_places(file: Path, tensors: Mapping[str, TensorInfo], begin: int, size: int) -> None:
    """Raise `UserError` unless the tensors lie one after another, each as long as its shape says, and fill the file."""
    at = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        long = info.params * BYTES[info.dtype] if info.dtype in BYTES else info.nbytes
        if info.start != at or info.nbytes != long:
            what = f"its header puts tensor {name} at bytes {info.start} to {info.stop}, which does not fit"
            raise user_error(file, what, DOWNLOAD_AGAIN)
        at = info.stop
    if at != size:
        raise user_error(file, f"has {size} bytes, its header says {at}", DOWNLOAD_AGAIN)


def _indexed_names(index: Path) -> list[str]:
    """Return the names of the files in an index, sorted. Raises `UserError` for one that is broken or points elsewhere."""
    named = read_json(index, DOWNLOAD_AGAIN).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise user_error(index, "has no weight_map from tensors to files", DOWNLOAD_AGAIN)
    outside = sorted(name for name in named.values() if Path(name).name != name)
    if outside:
        raise user_error(index, f"names {outside[0]!r}, which is no file of its folder", DOWNLOAD_AGAIN)
    return sorted(set(named.values()))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        files = [folder / name for name in _indexed_names(index)]
    else:
        files = sorted(folder.glob("*.safetensors"))
    absent = [file.name for file in files if not file.is_file()]
    if absent and not index.is_file():
        raise user_error(folder / absent[0], "is not a file", DOWNLOAD_AGAIN)
    if absent:
        raise user_error(folder, f"lacks {', '.join(absent[:3])}, which its index names", DOWNLOAD_AGAIN)
    return files


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors files."""

    folder: Path

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Return the checkpoint at a folder, or the one that a `model.json` describes. Raises `UserError` if there is none."""
        path = Path(path)
        # Not Path.is_file, which raises for a name that the system finds too long.
        described = os.path.isfile(path) and path.suffix == ".json"
        folder = Path(str(read_json(path).get("path", path))) if described else path
        if not os.path.isfile(folder / "config.json"):
            raise user_error(folder, "is not a model folder: it has no config.json", "Give the folder of a checkpoint")
        if not _weight_files(folder):
            pickles = sorted(p.name for p in folder.glob("*.bin"))
            what = f"holds {pickles[0]}, a pickle, which is not loaded" if pickles else "holds no safetensors file"
            raise user_error(folder, what, "Convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)")
        return cls(folder)

    @cached_property
    def config(self) -> dict:
        """The content of `config.json`."""
        return read_json(self.folder / "config.json", DOWNLOAD_AGAIN)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every parameter by name, in the files' order; masks and constants that old checkpoints store are left out."""
        held = (item for file in _weight_files(self.folder) for item in _header(file).items())
        return {name: info for name, info in held if not BUFFERS.search(name)}

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the embedding matrix; "not said" means what transformers takes it to mean."""
        said = self.config.get("tie_word_embeddings")
        return said if said is not None else "lm_head.weight" not in self.tensors

    def read(self, names: Iterable[str], dtype: "torch.dtype | None" = None) -> dict[str, "Tensor"]:
        """Return tensors in `dtype`, or as they are stored. Raises KeyError for a name that is not there.

        Files are mapped for this call only, so that no page of them stays resident, and nothing is copied twice.
        """
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        read: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            with safe_open(file, framework="pt") as handle:
                for name in wanted:
                    stored = handle.get_tensor(name)
                    read[name] = stored.to(dtype or stored.dtype, copy=True)
        return read

    def read_rows(self, name: str, rows: "Tensor") -> "Tensor":
        """Return chosen rows of a matrix, touching only their pages on disk."""
        from safetensors import safe_open

        with safe_open(self.tensors[name].file, framework="pt") as handle:
            return handle.get_tensor(name)[rows].clone()

    def fingerprint(self) -> str:
        """Return the SHA-256 over every file that decides what the model computes."""
        digest = hashlib.sha256()
        for file in (*_weight_files(self.folder), *self.others()):
            with open(file, "rb") as handle:
                digest.update(file.name.encode() + hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()

    def others(self) -> list[Path]:
        """Return the files of settings and tokenizer, sorted by name."""
        names = matching((path.name for path in self.folder.iterdir() if path.is_file()), SETTINGS_AND_TOKENIZER)
        return [self.folder / name for name in sorted(names)]
