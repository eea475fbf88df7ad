"""Weights without NaN and Inf: all are checked once when a model is described, later only those of files that changed since."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.models.checkpoint import FLOATS, Checkpoint, TensorInfo, stamp_of

VALUES_AT_ONCE = 1 << 24
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def finite_files(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Return the stamp (size, time of change in ns) of each file of weights, by name, once all weights that the model loads are checked.

    A few MiB are in memory at a time. Raises `UserError` naming the tensors that contain NaN or Inf.
    """
    stamps = {info.file.name: stamp_of(info.file) for info in checkpoint.tensors.values()}
    _refuse([name for name, info in checkpoint.tensors.items() if not _finite_as_stored(info)], checkpoint.folder)
    return stamps


def _finite_as_stored(info: TensorInfo) -> bool:
    """Return whether a tensor of a file has neither NaN nor Inf, with a few MiB of it in memory at a time."""
    return info.dtype not in FLOATS or all(
        torch.frombuffer(bytearray(part), dtype=TYPES[info.dtype]).isfinite().all() for part in info.pieces()
    )


def check_stored(names: Iterable[str], checkpoint: Checkpoint) -> None:
    """Raise `UserError` naming a tensor of a checkpoint with NaN or Inf, without keeping any in memory.

    Those that `describe_model.py` has checked already are not read.
    """
    unknown = [name for name in names if not checkpoint.known_finite(name)]
    _refuse([name for name in unknown if not _finite_as_stored(checkpoint.tensors[name])], checkpoint.folder)


def check_read(tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Raise `UserError` naming a tensor of a checkpoint with NaN or Inf: those that `describe_model.py` has not checked already.

    What was converted to a type of smaller range is checked in any case.
    """
    unknown = {
        name: values
        for name, values in tensors.items()
        if not checkpoint.known_finite(name) or _narrowed(values, checkpoint.tensors[name].dtype)
    }
    check_finite(unknown, checkpoint.folder)


def _narrowed(values: Tensor, stored: str) -> bool:
    """Return whether values that were finite as they are stored may have overflowed in the type they were read in."""
    return stored in TYPES and torch.finfo(values.dtype).max < torch.finfo(TYPES[stored]).max


def check_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise `UserError` naming a tensor that contains NaN or Inf: a sum is not finite as soon as one value is not."""
    # By parts, as torch widens what it sums.
    sums = {
        name: [part.sum(dtype=torch.float32) for part in values.reshape(-1).split(VALUES_AT_ONCE)]
        for name, values in tensors.items()
    }
    _refuse([name for name, parts in sums.items() if not all(part.isfinite() for part in parts)], source)


def _refuse(broken: list[str], source: object) -> None:
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise user_error(
            "MODEL-NOT-FINITE",
            source,
            f"tensor {broken[0]}{more} contains NaN or Inf",
            "Use a checkpoint without NaN or Inf weights",
        )
