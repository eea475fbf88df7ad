"""A layer's codes as MLX stores them, and the values that it computes from them again."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitplan.formats.base import Quantized
from bitplan.runtimes.mlx.schemes import AFFINE, NVFP4, Scheme
from bitplan.runtimes.packed.bits import pack_rows, unpack_rows
from bitplan.runtimes.packed.values import (
    e2m1_codes,
    e2m1_values,
    e4m3_bytes,
    e8m0_bytes,
    e8m0_values,
    nvfp4_parts,
    plus_groups,
    times_groups,
    unsigned_codes,
)


def packed(quantized: Quantized, scheme: Scheme) -> dict[str, Tensor]:
    """Return weight (out, in x bits / 32) uint32, scales (out, in / group) and, of integers, biases of the same shape.

    Scales of integers keep their type; biases of symmetric ones have it too where it holds them exactly, all others are float32. Scales
    of MX blocks and of NVFP4 are uint8.
    """
    if scheme.mode == AFFINE:
        return _affine(quantized, scheme)
    if scheme.mode == NVFP4:
        held = nvfp4_parts(quantized)
        scales = held.parts["scale"].contiguous().view(torch.uint8)
        return {"weight": pack_rows(e2m1_codes(held), 4).view(torch.uint32), "scales": scales}
    scales = e8m0_bytes(quantized)
    if scheme.bits == 8:
        return {"weight": e4m3_bytes(quantized).view(torch.uint32), "scales": scales}
    return {"weight": pack_rows(e2m1_codes(quantized), 4).view(torch.uint32), "scales": scales}


def _affine(quantized: Quantized, scheme: Scheme) -> dict[str, Tensor]:
    codes, zeros = unsigned_codes(quantized, 2 ** (scheme.own_bits - 1))
    scales = quantized.parts["scale"].contiguous()
    wide = -zeros * scales.to(torch.float32)
    narrow = wide.to(scales.dtype)
    biases = narrow if scheme.symmetric and torch.equal(narrow.to(torch.float32), wide) else wide
    return {"weight": pack_rows(codes, scheme.bits).view(torch.uint32), "scales": scales, "biases": biases}


def unpacked(tensors: Mapping[str, Tensor], scheme: Scheme) -> Tensor:
    """Return the weight (out, in) float32 that MLX computes with: code x scale + bias, or element x scale."""
    words, scales = tensors["weight"], tensors["scales"]
    if scheme.mode == AFFINE:
        products = times_groups(unpack_rows(words, scheme.bits).to(torch.float32), scales)
        return plus_groups(products, tensors["biases"])
    elements = e2m1_values(unpack_rows(words, 4)) if scheme.bits == 4 else words.view(torch.float8_e4m3fn)
    wide = scales.view(torch.float8_e4m3fn).to(torch.float32) if scheme.mode == NVFP4 else e8m0_values(scales)
    return times_groups(elements.to(torch.float32), wide)
