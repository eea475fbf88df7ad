"""Safetensors files written one after another: tensors from memory, or copied from the checkpoint byte by byte."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitplan.models.checkpoint import TensorInfo

DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
}
# A tensor to write, or one of the checkpoint to copy.
Content = Tensor | TensorInfo


def _entry(content: Content) -> tuple[str, list[int], int]:
    """Return (dtype, shape, bytes) of what is written."""
    if isinstance(content, TensorInfo):
        return content.dtype, list(content.shape), content.nbytes
    return DTYPES[content.dtype], list(content.shape), content.numel() * content.element_size()


def _header(contents: Mapping[str, Content]) -> bytes:
    entries, start = {"__metadata__": {"format": "pt"}}, 0
    for name, content in contents.items():
        dtype, shape, size = _entry(content)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_shard(path: Path, contents: Mapping[str, Content]) -> int:
    """Write a safetensors file and return the bytes of its tensors."""
    with open(path, "wb") as handle:
        handle.write(_header(contents))
        for content in contents.values():
            if isinstance(content, TensorInfo):
                content.copy_to(handle)
            else:
                handle.write(memoryview(content.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return sum(_entry(content)[2] for content in contents.values())


def shard_name(number: int, count: int) -> str:
    """Return the file name of shard `number`, counted from 1, as transformers names them."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def file_bytes(folder: Path) -> int:
    """Return the bytes of the weight files in a folder."""
    return sum(os.path.getsize(path) for path in folder.glob("*.safetensors"))
