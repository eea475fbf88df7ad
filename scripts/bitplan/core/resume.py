"""What a long measurement has done so far, kept beside its output: killed at any moment, the next run goes on from there."""

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
from bitplan.core.files import read_json, write_json, written_aside
from bitplan.core.safetensors_io import read_tensors, write_tensors

log = logging.getLogger(__name__)
KEY = "of.json"
HIDDEN = "hidden"  # the states that the next block gets, among what is kept of a walk
# Keeping a walk takes at most this share of its time: blocks that are done faster than they are written are kept a few at a time.
SHARE = 0.05


def digest_of(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of facts that JSON can hold; tensors by their bytes."""

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            return hashlib.sha256(value.contiguous().cpu().numpy().tobytes()).hexdigest()
        return repr(value)

    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=told).encode()).hexdigest()


@dataclass(frozen=True)
class Kept:
    """A folder of finished pieces by name: JSON objects and tensors. Each is written aside and renamed, so it is whole or not there."""

    folder: Path

    @classmethod
    def folder_of(cls, output: Path) -> "Kept":
        """Return the folder `<output>.partial`, as it is."""
        return cls(Path(output).with_name(f"{Path(output).name}.partial"))

    @classmethod
    def beside(cls, output: Path, digest: str) -> "Kept":
        """Return the folder of an output, emptied first where it holds pieces of another measurement than `digest`."""
        made = cls.folder_of(output)
        if made.is_of(digest):
            log.info("resuming from %s", made.folder)
            return made
        if made.has(KEY):
            log.warning("%s was created with a different model, text or settings; starting over", made.folder)
        made.remove()
        try:
            write_json(made.folder / KEY, {"digest": digest})
        except OSError:
            made.remove()
            raise
        return made

    @contextmanager
    def unless_worthless(self) -> Iterator["Kept"]:
        """Remove the folder after a mistake that the user has to mend, which makes it worthless; not where the disk is full."""
        try:
            yield self
        except UserError as error:
            if not isinstance(error.__context__, OSError):
                self.remove()
            raise

    def is_of(self, digest: str) -> bool:
        """Return whether the folder holds pieces of the measurement with this digest."""
        return self.has(KEY) and read_json(self.folder / KEY, self._hint).get("digest") == digest

    def has(self, name: str) -> bool:
        """Return whether a piece is finished."""
        return (self.folder / name).exists()

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that was kept. Raises `UserError` for a file that was changed since."""
        held = self.tensors(name)
        if "values" not in held:
            raise user_error("RESUME-BROKEN", self.folder / name, "is damaged: it has no values", self._hint)
        return held["values"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return tensors that were kept together, by name. Raises `UserError` for a file that was changed since."""
        return read_tensors(self.folder / name, "RESUME-BROKEN", "a file of saved progress", self._hint)

    @property
    def _hint(self) -> str:
        return f"Remove {self.folder} and run the command again"

    def keep_tensor(self, name: str, values: Tensor) -> None:
        """Keep a tensor, on the CPU, in its dtype."""
        self.keep_tensors(name, {"values": values})

    def keep_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors in one file, on the CPU, in their dtypes."""
        write_tensors(self.folder / name, tensors)

    def keep_exactly(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep an object that JSON can hold, numbers as they are, NaN and infinity too."""
        with written_aside(self.folder / name) as aside:
            aside.write_text(json.dumps(content), encoding="utf-8")

    def once(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the object kept under a name, made and kept first where it is not there. What is returned is what was read back."""
        if not self.has(name):
            write_json(self.folder / name, make())
        return read_json(self.folder / name, self._hint)

    def remove(self) -> None:
        """Remove the folder and all that it holds: first what says of what it is, so that a half-removed one counts for nothing."""
        (self.folder / KEY).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def blocks_beside(output: Path, digest: str) -> Iterator[Path]:
    """Yield `<output>.partial` for block files, with those of an interrupted run of the same digest; removed when no block is done."""
    kept = Kept.beside(output, digest)
    try:
        yield kept.folder
    finally:
        if not any(kept.folder.glob("block-*.safetensors")):
            kept.remove()


def states_name(block: int) -> str:
    """Return the name under which the hidden states that a block gets are kept."""
    return f"states-{block:04d}.safetensors"


def gradient_name(block: int) -> str:
    """Return the name under which the loss's gradient at these hidden states is kept."""
    return f"gradient-{block:04d}.safetensors"


def load_states(kept: Kept, block: int, device: torch.device) -> Tensor:
    """Return the full-precision hidden states (sequences, length, hidden) that a block gets; after the last block for its number."""
    return kept.tensor(states_name(block)).to(device)


@dataclass(frozen=True)
class Reached:
    """How far a walk had come: the block that is next, and tensors and facts (what JSON holds) of those before it."""

    block: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


@dataclass
class KeptWalk:
    """A walk over blocks whose progress is kept: in `kept` under a name, or nowhere; no more than `share` of the time goes into it."""

    kept: Kept | None
    name: str = "walk"
    share: float = SHARE
    _took: float = field(default=0.0, init=False)
    _since: float = field(default_factory=time.monotonic, init=False)

    @property
    def _told(self) -> str:
        return f"{self.name}-reached.json"

    def _file(self, block: int) -> str:
        return f"{self.name}-reached-{block:04d}.safetensors"

    def reached(self) -> Reached:
        """Return where to go on: block 0 and nothing, where nothing is kept. Raises `UserError` for a file that was changed since."""
        if self.kept is None or not self.kept.has(self._told):
            return Reached(0, {}, {})
        told = read_json(self.kept.folder / self._told, self.kept._hint)
        log.info("%s: resuming before block %d", self.name, told["block"])
        return Reached(told["block"], self.kept.tensors(self._file(told["block"])), told["facts"])

    def keep(self, block: int, made: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]) -> None:
        """Keep that `block` is next, with the tensors and facts that `made` gives: unless too little time has gone by since the last time.

        Where it cannot be written a warning says so, once, and the walk goes on without.
        """
        from safetensors import SafetensorError

        if self.kept is None or self._took > self.share * (time.monotonic() - self._since):
            return
        began = time.monotonic()
        try:
            self._write(block, *made())
        except (OSError, SafetensorError, UserError) as error:
            log.warning("%s: progress cannot be saved, continuing without: %s", self.kept.folder, error)
            self._took = float("inf")
            return
        self._since = time.monotonic()
        self._took = self._since - began

    def _write(self, block: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.kept.keep_tensors(self._file(block), tensors)
        # From here on the new file counts. Numbers as they are: what goes on with them is to end in the bytes of a run that was not stopped.
        self.kept.keep_exactly(self._told, {"block": block, "facts": facts})
        self._remove(but=block)

    def _remove(self, but: int | None = None) -> None:
        for path in self.kept.folder.glob(f"{self.name}-reached-*.safetensors"):
            if but is None or path.name != self._file(but):
                path.unlink()

    def forget(self) -> None:
        """Remove what is kept of the walk, which has ended and whose result is kept elsewhere."""
        if self.kept is not None:
            (self.kept.folder / self._told).unlink(missing_ok=True)
            self._remove()


# A walk of which nothing is kept.
NOWHERE = KeptWalk(None)
