"""What a long measurement has done so far, kept beside its output: killed at any moment, the next run goes on from there."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitplan.errors import user_error
from bitplan.files import read_json, write_json, written_aside

log = logging.getLogger(__name__)
KEY = "of.json"


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
        if made.has(KEY) and read_json(made.folder / KEY).get("digest") != digest:
            log.warning("%s is of another model, text or setting: beginning anew", made.folder)
        elif made.has(KEY):
            log.info("going on from %s", made.folder)
            return made
        made.remove()
        try:
            write_json(made.folder / KEY, {"digest": digest})
        except OSError:
            made.remove()
            raise
        return made

    def has(self, name: str) -> bool:
        """Return whether a piece is finished."""
        return (self.folder / name).exists()

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that was kept. Raises `UserError` for a file that was changed since."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            # What the file maps need not begin where a tensor of torch's own would.
            return load_file(self.folder / name)["values"].clone()
        except (OSError, SafetensorError, KeyError) as error:
            raise user_error(
                self.folder / name, f"is broken: {error}", f"Remove {self.folder}, and run again"
            ) from None

    def keep_tensor(self, name: str, values: Tensor) -> None:
        """Keep a tensor, on the CPU, in its dtype."""
        from safetensors.torch import save_file

        with written_aside(self.folder / name) as aside:
            save_file({"values": values.detach().cpu().contiguous()}, aside)

    def once(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the object kept under a name, made and kept first where it is not there. What is returned is what was read back."""
        if not self.has(name):
            write_json(self.folder / name, make())
        return read_json(self.folder / name, f"Remove {self.folder}, and run again")

    def remove(self) -> None:
        """Remove the folder and all that it holds."""
        shutil.rmtree(self.folder, ignore_errors=True)


def states_name(block: int) -> str:
    """Return the name under which the hidden states that a block gets are kept."""
    return f"states-{block:04d}.safetensors"


def gradient_name(block: int) -> str:
    """Return the name under which the loss's gradient at these hidden states is kept."""
    return f"gradient-{block:04d}.safetensors"


def load_states(kept: Kept, block: int, device: torch.device) -> Tensor:
    """Return the full-precision hidden states (sequences, length, hidden) that a block gets; after the last block for its number."""
    return kept.tensor(states_name(block)).to(device)
