"""safetensors files: the one place that writes them, reads them whole, and reads or writes their headers.

A file is 8 bytes of length, a JSON header of that length, then the tensors' bytes one after another (safetensors format).
"""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bitplan.core.errors import user_error
from bitplan.core.files import write_aside

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 24
DOWNLOAD_AGAIN = "Download the checkpoint again"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: the file, its name there, its dtype as safetensors names it, shape, first byte and end in the file."""

    file: Path
    key: str
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

    def pieces(self) -> Iterator[bytes]:
        """Yield the tensor's bytes, a few MiB at a time."""
        with open(self.file, "rb") as source:
            source.seek(self.start)
            left = self.nbytes
            while piece := source.read(min(left, PIECE)):
                yield piece
                left -= len(piece)

    def copy_to(self, handle: BinaryIO) -> None:
        """Copy the tensor's bytes."""
        for piece in self.pieces():
            handle.write(piece)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a file by name, without reading them. Raises `UserError` for a damaged or truncated file."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise user_error("MODEL-TRUNCATED", file, "is truncated: its header is incomplete", DOWNLOAD_AGAIN)
        try:
            entries = json.loads(handle.read(length))
            entries.pop("__metadata__", None)
            held = {name: _tensor_info(file, name, entry, 8 + length) for name, entry in entries.items()}
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            hint = "Download the checkpoint again, or save it with `save_pretrained`"
            raise user_error(
                "MODEL-BAD-HEADER", file, "is not a safetensors file: its header is invalid", hint
            ) from None
    _check_places(file, held, 8 + length, size)
    return held


def _tensor_info(file: Path, name: str, entry: Mapping[str, Any], begin: int) -> TensorInfo:
    """Return an entry of a header. Raises KeyError, TypeError or ValueError for one that safetensors does not allow."""
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if any(type(number) is not int or number < 0 for number in (start, stop, *shape)):
        raise ValueError("sizes and offsets are whole numbers from 0")
    return TensorInfo(file, name, str(entry["dtype"]), shape, begin + start, begin + stop)


def _check_places(file: Path, tensors: Mapping[str, TensorInfo], begin: int, size: int) -> None:
    """Raise `UserError` unless the tensors lie one after another, each as long as its shape says, and fill the file."""
    at = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        long = info.params * BYTES[info.dtype] if info.dtype in BYTES else info.nbytes
        if info.start != at or info.nbytes != long:
            what = f"its header puts tensor {name} at bytes {info.start} to {info.stop}, which does not fit"
            raise user_error("MODEL-BAD-HEADER", file, what, DOWNLOAD_AGAIN)
        at = info.stop
    if at != size:
        raise user_error("MODEL-TRUNCATED", file, f"has {size} bytes, its header says {at}", DOWNLOAD_AGAIN)


def header_of(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """Return length and header of a file with tensors {name: (dtype, shape, bytes)} in this order, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape, size) in tensors.items():
        stop = start + size
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], facts: str | None = None) -> None:
    """Write tensors aside and rename the file: on the CPU, in their dtypes, with a text `facts` in the header.

    One key of metadata only: safetensors writes several in an order that changes from run to run.
    """
    from safetensors.torch import save_file

    with write_aside(path) as aside:
        held = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
        save_file(held, aside, None if facts is None else {"facts": facts})


@contextmanager
def opened_tensors(path: Path, code: str, kind: str, hint: str) -> Iterator[tuple[Any, str]]:
    """Yield the handle of a file and the text `facts` in its header ("" without one).

    Raises `UserError` with `code` where the file is none of this `kind`, as by a key that the block misses.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            yield handle, (handle.metadata() or {}).get("facts", "")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise user_error(code, path, f"is not {kind}: {error}", hint) from None


def read_tensors(path: Path, code: str, kind: str, hint: str) -> dict[str, "Tensor"]:
    """Return all tensors of a file, on the CPU. Raises `UserError` with `code` where the file is none of this `kind`."""
    with opened_tensors(path, code, kind, hint) as (handle, _):
        # What the file maps need not begin where a tensor of torch's own would.
        return {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118 (the handle is not a mapping)
