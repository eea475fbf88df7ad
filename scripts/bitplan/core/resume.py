"""Intermediate results of a long measurement, saved next to its output: after a kill, the next run resumes from them."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitplan.core.errors import UserError, user_error
from bitplan.core.files import read_json, write_aside, write_json

log = logging.getLogger(__name__)
KEY = "of.json"
HIDDEN = "hidden"  # the name of the next block's input states among the saved tensors of a walk
# Saving takes at most this share of a walk's time: when blocks finish faster than they are written, some are not saved.
SHARE = 0.05


def digest_of(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON-serializable facts; tensors enter by their bytes."""

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            return hashlib.sha256(value.contiguous().cpu().numpy().tobytes()).hexdigest()
        return repr(value)

    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=encode).encode()).hexdigest()


@dataclass(frozen=True)
class PartialResults:
    """A folder of named intermediate results: JSON objects and tensors. Each is renamed into place, so it is complete or absent."""

    folder: Path

    @classmethod
    def folder_of(cls, output: Path) -> "PartialResults":
        """Return the folder `<output>.partial` without changing it."""
        return cls(Path(output).with_name(f"{Path(output).name}.partial"))

    @classmethod
    def open(cls, output: Path, digest: str) -> "PartialResults":
        """Return the folder of an output, emptied if it belongs to a measurement with a different `digest`."""
        partial = cls.folder_of(output)
        if partial.has(KEY) and read_json(partial.folder / KEY).get("digest") != digest:
            log.warning("%s is of another model, text or setting: beginning anew", partial.folder)
        elif partial.has(KEY):
            log.info("going on from %s", partial.folder)
            return partial
        partial.remove()
        try:
            write_json(partial.folder / KEY, {"digest": digest})
        except OSError:
            partial.remove()
            raise
        return partial

    @contextmanager
    def remove_on_user_error(self) -> Iterator["PartialResults"]:
        """Remove the folder after an error in the user's input, which makes it useless; keep it if the disk is full."""
        try:
            yield self
        except UserError as error:
            if not isinstance(error.__context__, OSError):
                self.remove()
            raise

    def has(self, name: str) -> bool:
        """Return whether a result is saved."""
        return (self.folder / name).exists()

    def tensor(self, name: str) -> Tensor:
        """Return a saved tensor. Raises `UserError` for a damaged file."""
        tensors = self.tensors(name)
        if "values" not in tensors:
            raise user_error(self.folder / name, "is broken: it has no values", self._hint)
        return tensors["values"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return {name: tensor} of one file. Raises `UserError` for a damaged file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            # A mapped tensor may not be aligned as torch aligns its own, so it is copied.
            return {key: values.clone() for key, values in load_file(self.folder / name).items()}
        except (OSError, SafetensorError) as error:
            raise user_error(self.folder / name, f"is broken: {error}", self._hint) from None

    @property
    def _hint(self) -> str:
        return f"Remove {self.folder}, and run again"

    def save_tensor(self, name: str, values: Tensor) -> None:
        """Save a tensor in its dtype."""
        self.save_tensors(name, {"values": values})

    def save_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Save tensors in one file, in their dtypes."""
        from safetensors.torch import save_file

        with write_aside(self.folder / name) as aside:
            save_file({key: values.detach().cpu().contiguous() for key, values in tensors.items()}, aside)

    def once(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the object saved under a name, computed and saved first if absent. It is always read back from the file."""
        if not self.has(name):
            write_json(self.folder / name, make())
        return read_json(self.folder / name, self._hint)

    def remove(self) -> None:
        """Remove the folder and its content, the digest first, so that a half-removed folder is never resumed from."""
        (self.folder / KEY).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def states_name(block: int) -> str:
    """Return the name of the file with a block's input hidden states."""
    return f"states-{block:04d}.safetensors"


def gradient_name(block: int) -> str:
    """Return the name of the file with the loss's gradient at a block's input."""
    return f"gradient-{block:04d}.safetensors"


def load_states(partial: PartialResults, block: int, device: torch.device) -> Tensor:
    """Return a block's full-precision input states (sequences, length, hidden); for the number of blocks, the last block's output."""
    return partial.tensor(states_name(block)).to(device)


@dataclass(frozen=True)
class WalkPosition:
    """Where an interrupted walk resumes: the next block, and the tensors and JSON facts of the blocks before it."""

    block: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


@dataclass
class WalkProgress:
    """Saves the progress of a walk over blocks in `kept` under a name, or nowhere, in at most `share` of the time."""

    kept: PartialResults | None
    name: str = "walk"
    share: float = SHARE
    _took: float = field(default=0.0, init=False)
    _since: float = field(default_factory=time.monotonic, init=False)

    @property
    def _state_file(self) -> str:
        return f"{self.name}-reached.json"

    def _file(self, block: int) -> str:
        return f"{self.name}-reached-{block:04d}.safetensors"

    def reached(self) -> WalkPosition:
        """Return where to resume: block 0 without tensors if nothing is saved. Raises `UserError` for a damaged file."""
        if self.kept is None or not self.kept.has(self._state_file):
            return WalkPosition(0, {}, {})
        state = read_json(self.kept.folder / self._state_file, self.kept._hint)
        log.info("%s: going on before block %d", self.name, state["block"])
        return WalkPosition(state["block"], self.kept.tensors(self._file(state["block"])), state["facts"])

    def keep(self, block: int, content: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]) -> None:
        """Save that `block` is next, with the tensors and facts that `content` returns, unless the last save was too recent.

        If it cannot be written, one warning says so and the walk continues without saving.
        """
        from safetensors import SafetensorError

        if self.kept is None or self._took > self.share * (time.monotonic() - self._since):
            return
        began = time.monotonic()
        try:
            self._write(block, *content())
        except (OSError, SafetensorError, UserError) as error:
            log.warning("%s: what is done cannot be kept, going on without: %s", self.kept.folder, error)
            self._took = float("inf")
            return
        self._since = time.monotonic()
        self._took = self._since - began

    def _write(self, block: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.kept.save_tensors(self._file(block), tensors)
        # From here on the new file is used. Floats are not rounded: a resumed run must give the bytes of an uninterrupted one.
        with write_aside(self.kept.folder / self._state_file) as aside:
            aside.write_text(json.dumps({"block": block, "facts": facts}), encoding="utf-8")
        self._remove(but=block)

    def _remove(self, but: int | None = None) -> None:
        for path in self.kept.folder.glob(f"{self.name}-reached-*.safetensors"):
            if but is None or path.name != self._file(but):
                path.unlink()

    def forget(self) -> None:
        """Remove the saved progress of a finished walk, whose result is saved elsewhere."""
        if self.kept is not None:
            (self.kept.folder / self._state_file).unlink(missing_ok=True)
            self._remove()


# A walk whose progress is not saved.
NOT_SAVED = WalkProgress(None)
