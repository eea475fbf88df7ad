"""A layer's codes in the library's packing, and what the library makes of them again."""

from collections.abc import Mapping
from functools import cache

import torch
from compressed_tensors.compressors import BaseCompressor, pack_to_int32
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from torch import Tensor

from bitplan.formats.base import Quantized, rows_of
from bitplan.runtimes.compressed_tensors.schemes import NV_PACKING, Scheme
from bitplan.runtimes.packed.values import e4m3_bytes, e8m0_bytes, nvfp4_parts


@cache
def library_scheme(scheme: Scheme, targets: tuple[str, ...] = ("Linear",)) -> QuantizationScheme:
    """Return the library's own record of a scheme for some layers: what stands in the configuration."""
    nvfp4 = scheme.packing == NV_PACKING
    scales = torch.float8_e4m3fn if nvfp4 else torch.uint8
    floats = {"scale_dtype": scales, "zp_dtype": scales} if scheme.kind == "float" else {}
    weights = QuantizationArgs(
        num_bits=scheme.bits,
        type=scheme.kind,
        strategy="tensor_group" if nvfp4 else "group",
        group_size=scheme.group,
        symmetric=scheme.symmetric,
        **floats,
    )
    return QuantizationScheme(targets=list(targets), weights=weights, format=scheme.packing)


def packed(quantized: Quantized, scheme: Scheme) -> dict[str, Tensor]:
    """Return the tensors of a layer by the names that follow its own, e.g. weight_packed (out, in x bits / 32) int32.

    Scales of integers keep their type, (out, in / group); those of MX blocks are uint8, those of NVFP4 E4M3, with one float32 for the matrix.
    """
    if scheme.packing == NV_PACKING:
        return _packed_nvfp4(quantized)
    parts = quantized.parts
    if scheme.kind == "int":
        return _packed_integers(parts, quantized.shape, scheme)
    scale = e8m0_bytes(quantized)
    if scheme.bits == 8:
        return {"weight": e4m3_bytes(quantized), "weight_scale": scale}
    elements = rows_of(parts["elements"].to(torch.float32), quantized.shape).contiguous()
    return {"weight_packed": pack_fp4_to_uint8(elements), "weight_scale": scale}


def _packed_nvfp4(quantized: Quantized) -> dict[str, Tensor]:
    held = nvfp4_parts(quantized)
    elements = rows_of(held.parts["elements"].to(torch.float32), held.shape).contiguous()
    scales = {"weight_scale": held.parts["scale"].contiguous(), "weight_global_scale": held.parts["global_scale"]}
    return {"weight_packed": pack_fp4_to_uint8(elements), **scales}


def _packed_integers(parts: Mapping[str, Tensor], shape: tuple[int, int], scheme: Scheme) -> dict[str, Tensor]:
    half = 0 if scheme.symmetric else 2 ** (scheme.bits - 1)
    codes = (rows_of(parts["codes"], shape).to(torch.int16) - half).to(torch.int8)
    tensors = {
        "weight_packed": pack_to_int32(codes, scheme.bits),
        "weight_scale": parts["scale"].contiguous(),
        "weight_shape": torch.tensor(shape),
    }
    if not scheme.symmetric:
        zero = (parts["zero"].to(torch.int16) - half).to(torch.int8)
        tensors["weight_zero_point"] = pack_to_int32(zero, scheme.bits, packed_dim=0).contiguous()
    return tensors


def unpacked(tensors: Mapping[str, Tensor], scheme: Scheme) -> Tensor:
    """Return the weight (out, in) float32 that the library itself decompresses from a layer's tensors.

    Of NVFP4 by its own functions in float32: its compressor gives bfloat16.
    """
    made = library_scheme(scheme)
    if scheme.packing == NV_PACKING:
        codes, scale = tensors["weight_packed"], tensors["weight_scale"].to(torch.float32)
        elements = unpack_fp4_from_uint8(codes, len(codes), 2 * codes.shape[1], torch.float32)
        return dequantize(elements, scale, args=made.weights, global_scale=tensors["weight_global_scale"])
    widened = {
        name: value.float() if name == "weight_scale" and scheme.kind == "int" else value
        for name, value in tensors.items()
    }
    compressor = BaseCompressor.get_value_from_registry(scheme.packing)
    return compressor.decompress(widened, made)["weight"].to(torch.float32)
