"""What commands open first: the model, its description, and a text with the full-precision answer on it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitplan import __version__
from bitplan.demo import DEMO
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import ModelInfo, described_checkpoint, model_info
from bitplan.models.walk import StreamedModel, open_model
from bitplan.reference.reference import Teacher, load_teacher, make_teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A checkpoint, its description and the model that is walked block by block."""

    checkpoint: Checkpoint
    info: ModelInfo
    model: StreamedModel
    dtype: str

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the figures of a walk: also threads and batches, which may change last digits."""
        return {
            **{"model": self.info.fingerprint, "dtype": self.dtype, "device": str(self.model.device)},
            **{"threads": torch.get_num_threads(), "tokens_per_batch": self.model.tokens_per_batch},
            "version": __version__,
        }


def opened(path: Path, dtype: str, device: str, threads: int) -> Opened:
    """Open a model for computing with `threads` threads. Raises `UserError`."""
    torch.set_num_threads(threads)
    info = model_info(path)
    checkpoint = described_checkpoint(path, info)
    return Opened(checkpoint, info, open_model(checkpoint, dtype, device), dtype)


def teacher_on(source: Path | None, model: Opened, length: int, sequences: int | None, bundled: str) -> Teacher:
    """Return the teacher on a text, or the saved one where `source` is a safetensors file.

    Without a source the bundled text is used, and a warning says so.
    """
    if source is not None and source.suffix == ".safetensors":
        return load_teacher(source, model.checkpoint, model.info.fingerprint, model.dtype)
    if source is None:
        source = DEMO / bundled
        log.warning("no text was given: using the bundled %s; give one that is like what the model is for", bundled)
    return make_teacher(model.model, source, length, sequences, model.dtype)
