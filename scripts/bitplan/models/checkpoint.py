"""A checkpoint folder: the tensors that it stores, those that its model loads, and reading single ones.

To list tensors, only the headers of the safetensors files are read.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitplan.core.errors import UserError, user_error
from bitplan.core.files import digest_of_files, read_json
from bitplan.core.safetensors_io import DOWNLOAD_AGAIN, PIECE, TensorInfo, read_header
from bitplan.models.checkpoint_files import INDEX, INDEX_END, OTHER_WEIGHTS, SETTINGS_AND_TOKENIZER, SINGLE, match_names
from bitplan.models.recorded_loading import recorded_loading

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bitplan.models.loading import Loading

FLOATS = ("F64", "F32", "F16", "BF16")


def _read_index(index: Path) -> dict[str, str]:
    """Return {tensor: file} of an index. Raises `UserError` if it is broken or names a file outside its folder."""
    files = read_json(index, DOWNLOAD_AGAIN).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise user_error("MODEL-BAD-INDEX", index, "has no weight_map from tensors to files", DOWNLOAD_AGAIN)
    outside = sorted(name for name in files.values() if Path(name).name != name)
    if outside:
        raise user_error(
            "MODEL-BAD-INDEX", index, f"names {outside[0]!r}, which is not a file name in its folder", DOWNLOAD_AGAIN
        )
    return files


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads: the single file if it exists, else those of the index. Raises `UserError`."""
    if (folder / SINGLE).exists():
        files = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        files = [folder / name for name in sorted(set(_read_index(folder / INDEX).values()))]
    else:
        raise _without_weights(folder)
    absent = [file.name for file in files if not file.is_file()]
    if absent and files[0].name == SINGLE:
        raise user_error("MODEL-NO-SHARD", folder / SINGLE, "is not a file", DOWNLOAD_AGAIN)
    if absent:
        raise user_error(
            "MODEL-NO-SHARD", folder, f"lacks {', '.join(absent[:3])}, which its index names", DOWNLOAD_AGAIN
        )
    return files


def _without_weights(folder: Path) -> UserError:
    """Return the error for a folder without weights that transformers would load."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        what = f"has {others[0]}, but neither {SINGLE} nor {INDEX}, which transformers looks for"
        return user_error(
            "MODEL-UNUSUAL-NAME",
            folder,
            what,
            f"Rename a single file to {SINGLE}, or save the model with `save_pretrained`",
        )
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    what = f"has only pickled weights ({pickles[0]}), which are never loaded" if pickles else "has no safetensors file"
    return user_error(
        "MODEL-NO-SAFETENSORS",
        folder,
        what,
        "Convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
    )


def stamp_of(file: Path) -> list[int]:
    """Return a file's size in bytes and its time of change in ns, by which a change of its content shows."""
    told = file.stat()
    return [told.st_size, told.st_mtime_ns]


def _same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Return whether two tensors have the same dtype, shape and bytes."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and all(
        a == b for a, b in zip(one.pieces(), other.pieces(), strict=True)
    )


def _all_tensors(files: Iterable[Path]) -> dict[str, TensorInfo]:
    """Return the tensors of some files. Raises `UserError` if two files store a tensor with different values."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in tensors and not _same_bytes(tensors[name], info):
                what = f"and {tensors[name].file.name} both contain {name}, with different values"
                raise user_error(
                    "MODEL-TENSOR-TWICE", file, what, "Remove one of them: programs differ in which one they load"
                )
            tensors[name] = info
    return tensors


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors files."""

    folder: Path
    finite: Mapping[str, list[int]] = field(
        default_factory=dict, compare=False
    )  # the stamps of files without NaN and Inf
    # What model.json records of the loading.
    recorded: Mapping[str, Any] | None = field(default=None, compare=False)

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Return the checkpoint in a folder, or the one that a `model.json` describes. Raises `UserError` if there is none."""
        path = Path(path)
        # Not Path.is_file, which raises for names that are too long for the file system.
        described = os.path.isfile(path) and path.suffix == ".json"
        told = read_json(path) if described else {}
        folder, finite = Path(str(told.get("path", path))), told.get("finite")
        if not os.path.isfile(folder / "config.json"):
            raise user_error(
                "MODEL-NO-CONFIG",
                folder,
                "is not a model folder: it has no config.json",
                "Give the folder of a checkpoint",
            )
        _weight_files(folder)
        return cls(folder, finite if isinstance(finite, dict) else {}, told.get("loading"))

    def known_finite(self, name: str) -> bool:
        """Return whether a tensor's file was checked for NaN and Inf when the model was described, and has not changed since."""
        file = self.tensors[name].file
        return file.name in self.finite and self.finite[file.name] == stamp_of(file)

    @cached_property
    def config(self) -> dict:
        """The content of `config.json`."""
        return read_json(self.folder / "config.json", DOWNLOAD_AGAIN)

    @cached_property
    def text_config(self) -> dict:
        """The language model's part of `config.json`: its own keys override those of the whole model."""
        inner = self.config.get("text_config")
        return {**self.config, **inner} if isinstance(inner, dict) else self.config

    @cached_property
    def stored(self) -> Mapping[str, TensorInfo]:
        """Every tensor in the files that transformers loads, by its name there, in the files' order."""
        return _all_tensors(_weight_files(self.folder))

    @property
    def indexed(self) -> Mapping[str, str]:
        """{tensor: file} of the index; empty if the index is absent or not used."""
        index = self.folder / INDEX
        return {} if (self.folder / SINGLE).exists() or not index.is_file() else _read_index(index)

    @cached_property
    def loading(self) -> "Loading":
        """What the model built from `config.json` loads. Raises `UserError` if transformers cannot build it."""
        # The headers first: the message about a broken file is more useful than the errors that follow from it.
        stored = list(self.stored)
        known = recorded_loading(self.recorded, self.folder, stored)
        if known is not None:
            return known
        from bitplan.models.loading import read_loading

        return read_loading(self.folder, self.config, stored)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor that the model loads, in the files' order, by name without wrappers' prefixes."""
        return {name: self.stored[key] for name, key in self.loading.names.items()}

    @property
    def unused_files(self) -> tuple[str, ...]:
        """Weight files in the folder that the model does not use, sorted: adapters, older copies, other programs' files."""
        used = {file.name for file in _weight_files(self.folder)} | {file.name for file in self.others()}
        return tuple(sorted(set(match_names(os.listdir(self.folder), OTHER_WEIGHTS)) - used))

    @cached_property
    def tied(self) -> bool:
        """Whether the output matrix is the embedding matrix. As in transformers, a stored output matrix that differs is used."""
        loading = self.loading
        if not loading.tied or loading.embedding is None or loading.output is None:
            return loading.tied
        return self._equal(loading.embedding, loading.output)

    def _equal(self, one: str, other: str) -> bool:
        """Return whether two matrices have the same values, with only some rows in memory at a time."""
        import torch

        first, second = self.tensors[one], self.tensors[other]
        if (first.dtype, first.shape) == (second.dtype, second.shape):
            return _same_bytes(first, second)
        if first.shape != second.shape:
            return False
        step = max(1, PIECE // max(1, first.shape[1]))
        rows = (torch.arange(i, min(i + step, first.shape[0])) for i in range(0, first.shape[0], step))
        return all(torch.equal(self.read_rows(one, some).float(), self.read_rows(other, some).float()) for some in rows)

    def read(self, names: Iterable[str], dtype: "torch.dtype | None" = None) -> dict[str, "Tensor"]:
        """Return tensors in `dtype`, or in their stored dtype. Raises KeyError for an unknown name.

        Files are mapped for this call only, so that none of their pages stays resident; nothing is copied twice.
        """
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        read: dict[str, Tensor] = {}
        for file, in_file in by_file.items():
            with safe_open(file, framework="pt") as handle:
                for name in in_file:
                    stored = handle.get_tensor(self.tensors[name].key)
                    read[name] = stored.to(dtype or stored.dtype, copy=True)
        return read

    def read_rows(self, name: str, rows: "Tensor") -> "Tensor":
        """Return the given rows of a matrix; only their pages are read from disk."""
        from safetensors import safe_open

        with safe_open(self.tensors[name].file, framework="pt") as handle:
            return handle.get_tensor(self.tensors[name].key)[rows].clone()

    def fingerprint(self) -> str:
        """Return the SHA-256 over every file that decides what the model computes."""
        return digest_of_files((*_weight_files(self.folder), *self.others()))

    def others(self) -> list[Path]:
        """Return the files of settings and tokenizer, sorted by name; an index only if it is used."""
        names = match_names((path.name for path in self.folder.iterdir() if path.is_file()), SETTINGS_AND_TOKENIZER)
        indexed = () if (self.folder / SINGLE).exists() else (INDEX,)
        return [self.folder / name for name in sorted(names) if not name.endswith(INDEX_END) or name in indexed]
