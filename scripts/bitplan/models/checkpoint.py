"""A checkpoint folder: which tensors it holds, and reading single ones without loading the rest.

Only the headers of the safetensors files are read here (8 bytes of length, then JSON: safetensors format),
so that listing layers needs neither torch nor the weights.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bitplan.errors import user_error
from bitplan.files import read_json
from bitplan.models.families import BUFFERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 1 << 24
FLOATS = ("F64", "F32", "F16", "BF16")


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
            raise user_error(file, "is cut short: its header is incomplete", "Download the checkpoint again")
        try:
            entries = json.loads(handle.read(length))
        except ValueError:
            raise user_error(file, "is not a safetensors file", "Save the model with `save_pretrained`") from None
    entries.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if 8 + length + end != size:
        raise user_error(file, f"has {size} bytes, its header says {8 + length + end}", "Download the checkpoint again")
    return {
        name: TensorInfo(
            file, entry["dtype"], tuple(entry["shape"]), *(8 + length + offset for offset in entry["data_offsets"])
        )
        for name, entry in entries.items()
    }


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    absent = [
        file.name
        for file in files
        if not file.is_file() or (file.resolve().parent != folder.resolve() and not file.is_symlink())
    ]
    if absent:
        raise user_error(
            folder, f"lacks {', '.join(absent[:3])}, which its index names", "Download the checkpoint again"
        )
    return files


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors files."""

    folder: Path

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Return the checkpoint at a folder, or the one that a `model.json` describes. Raises `UserError` if there is none."""
        path = Path(path)
        folder = Path(read_json(path)["path"]) if path.is_file() and path.suffix == ".json" else path
        if not (folder / "config.json").is_file():
            raise user_error(folder, "is not a model folder: it has no config.json", "Give the folder of a checkpoint")
        if not _weight_files(folder):
            pickles = sorted(p.name for p in folder.glob("*.bin"))
            what = f"holds {pickles[0]}, a pickle, which is not loaded" if pickles else "holds no safetensors file"
            raise user_error(folder, what, "Convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)")
        return cls(folder)

    @cached_property
    def config(self) -> dict:
        """The content of `config.json`."""
        return read_json(self.folder / "config.json")

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
        names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
        digest = hashlib.sha256()
        for file in (*_weight_files(self.folder), *(self.folder / name for name in names)):
            if file.is_file():
                with open(file, "rb") as handle:
                    digest.update(file.name.encode() + hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()
