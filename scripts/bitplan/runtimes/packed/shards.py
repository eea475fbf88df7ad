"""Safetensors files written one after another: tensors from memory, or copied from the checkpoint byte by byte."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitplan.core.safetensors_io import TensorInfo, header_of

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint8: "U8",
}
# A tensor to write, or one of the checkpoint to copy.
Content = Tensor | TensorInfo


def _entry(content: Content) -> tuple[str, tuple[int, ...], int]:
    """Return (dtype, shape, bytes) of what is written."""
    if isinstance(content, TensorInfo):
        return content.dtype, content.shape, content.nbytes
    return DTYPES[content.dtype], tuple(content.shape), content.nbytes


def write_shard(path: Path, contents: Mapping[str, Content]) -> int:
    """Write a safetensors file and return the bytes of its tensors."""
    entries = {name: _entry(content) for name, content in contents.items()}
    with open(path, "wb") as handle:
        handle.write(header_of(entries))
        for content in contents.values():
            if isinstance(content, TensorInfo):
                content.copy_to(handle)
            else:
                handle.write(memoryview(content.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return sum(size for _, _, size in entries.values())


def shard_name(number: int, count: int) -> str:
    """Return the file name of shard `number`, counted from 1, as transformers names them."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def file_bytes(folder: Path) -> int:
    """Return the bytes of the weight files in a folder."""
    return sum(os.path.getsize(path) for path in folder.glob("*.safetensors"))


def tensor_of(stored: TensorInfo) -> Tensor:
    """Return a tensor of the checkpoint in its own type."""
    types = {name: dtype for dtype, name in DTYPES.items()}
    return torch.frombuffer(bytearray(b"".join(stored.pieces())), dtype=types[stored.dtype]).reshape(stored.shape)
