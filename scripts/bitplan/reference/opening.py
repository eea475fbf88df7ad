"""What commands open first: the model, its description, and a text with the reference on it."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bitplan import __version__
from bitplan.core.errors import user_error
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.devices import pick_device, pick_dtype
from bitplan.models.layers import ModelInfo, model_info, open_described_checkpoint
from bitplan.models.walk import StreamedModel, open_model
from bitplan.reference.reference import Reference, load_reference, make_reference
from bitplan.reference.text import text_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedModel:
    """A checkpoint, its description, and how it is run: number type, device, and whether windows begin with BOS."""

    checkpoint: Checkpoint
    info: ModelInfo
    dtype: str
    device: str = "cpu"
    bos: str = "auto"

    @cached_property
    def model(self) -> StreamedModel:
        """The model that runs block by block, built when it is first asked for: scores of files need none. Raises `UserError`."""
        model = open_model(self.checkpoint, self.dtype, self.device)
        model.bos = self.bos
        return model

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the figures of a walk depend on, including threads and batches, which may change last digits."""
        return {
            **{"model": self.info.fingerprint, "dtype": self.dtype, "device": str(self.model.device)},
            **{"threads": torch.get_num_threads(), "tokens_per_batch": self.model.tokens_per_batch},
            "version": __version__,
        }


def prepare_model(path: Path, dtype: str, device: str, threads: int, bos: str = "auto") -> PreparedModel:
    """Open a model for running with `threads` threads; `bos` is its BOS policy: auto, always or never. Raises `UserError`."""
    torch.set_num_threads(threads)
    info = model_info(path)
    checkpoint = open_described_checkpoint(path, info)
    return PreparedModel(checkpoint, info, pick_dtype(dtype, pick_device(device)), device, bos)


def open_reference(source: Path, model: PreparedModel, length: int, sequences: int | None, skip: int = 0) -> Reference:
    """Return the reference on a text after its first `skip` tokens, or a saved one if `source` is a safetensors file."""
    if source.suffix == ".safetensors":
        return load_reference(source, model.checkpoint, model.info.fingerprint, model.dtype)
    return make_reference(model.model, source, length, sequences, model.dtype, skip)


def open_held_out_reference(
    source: Path, seen: Reference, model: PreparedModel, length: int, sequences: int | None
) -> Reference:
    """Return the reference on a held-out text. If it is the text of `seen`, the tokens after those of `seen` are used and logged.

    Raises `UserError` for a saved text that contains tokens of `seen`, and if too few tokens are left after them.
    """
    same = source.suffix != ".safetensors" and seen.source is not None and text_digest(source) == seen.source.sha256
    if same:
        log.info("%s is the calibration text: its tokens from %d on are held out", source, seen.source.stop)
    reference = open_reference(source, model, length, sequences, seen.source.stop if same else 0)
    if reference.source and seen.source and reference.source.overlaps(seen.source):
        what = "contains tokens of the calibration windows, so it is not held out"
        raise user_error(
            "TEXT-NOT-HELD-OUT", source, what, "Save it again with teacher.py --skip-tokens or give another text"
        )
    return reference
