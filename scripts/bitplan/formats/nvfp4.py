"""NVFP4: E2M1 elements in blocks of 16 with an E4M3 scale each, and one float32 scale for the whole matrix.

With G the scale of the matrix as compressed-tensors stores it (`weight_global_scale`; ModelOpt stores 1 / G, `weight_scale_2`):

    G = 448 x 6 / amax of the matrix             448 and 6 are the largest values of E4M3 and E2M1
    s = E4M3(G x amax of the block / 6)          at most 448; 1/8 for a block of zeros
    value = element x (s / G)                    element = E2M1(x / (s / G)), to nearest even

All in float32 and in this order, so that parts equal those of a published checkpoint bit for bit. The rule `power_of_two` takes the largest
power of two that is at most G: the step between scales is relative, so nothing is lost, and a value has 6 significant bits, which bfloat16
holds. Matrices that a runtime stores as one can then share one G.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from bitplan.formats.base import Dequantize, Quantize, Quantized, blocks_of, rows_of
from bitplan.formats.mx import E2M1, E4M3, floor_log2, power_of_two, round_to_element

BLOCK = 16
SCALE_OF_ZEROS = 0.125
# GGUF's NVFP4 has blocks of 64: four scales, then 8 bytes for each 16 values, low nibbles first.
GGUF_BLOCK, GGUF_SCALES = 64, 4

# rule(amax of the matrix, a float32 scalar tensor) -> G
ScaleRule = Callable[[Tensor], Tensor]


def published_scale(amax: Tensor) -> Tensor:
    """Return G = 448 x 6 / amax, float32; 1 where that is not finite (a matrix of zeros)."""
    scale = E4M3.largest * E2M1.largest / amax.to(torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(torch.isfinite(scale), scale, 1.0)


def power_of_two_scale(amax: Tensor) -> Tensor:
    """Return the largest power of two that is at most 448 x 6 / amax, float32."""
    return power_of_two(floor_log2(published_scale(amax)))


RULES: Mapping[str, ScaleRule] = MappingProxyType({"published": published_scale, "power_of_two": power_of_two_scale})


def matrix_scale(values: Tensor, rule: ScaleRule) -> Tensor:
    """Return G of a matrix (out, in), float32 (1,); blocks with NaN or infinity do not count."""
    amax = blocks_of(values, BLOCK).abs().amax(dim=-1)
    return rule(torch.where(torch.isfinite(amax), amax, 0.0).max()).reshape(1)


def quantizer(rule: ScaleRule, scale: Tensor | None = None) -> Quantize:
    """Return the quantizer of a scale rule, or of a given G (1,). A NaN or infinity makes its whole block NaN."""

    def quantize(values: Tensor, group: int, importance: Tensor | None = None) -> Quantized:
        """Return elements, block scales and G of values (out, in); `importance` changes nothing."""
        whole = matrix_scale(values, rule) if scale is None else scale.to(values.device)
        blocks = blocks_of(values, group)
        amax = blocks.abs().amax(dim=-1, keepdim=True)
        wide = (whole * (amax / E2M1.largest)).nan_to_num_(E4M3.largest).clamp_(max=E4M3.largest)
        stored = wide.to(torch.float8_e4m3fn)
        stored = torch.where(stored.to(torch.float32) == 0, torch.tensor(SCALE_OF_ZEROS).to(stored), stored)
        scaled = blocks / (stored.to(torch.float32) / whole)
        elements = round_to_element(scaled.nan_to_num(0.0).clamp_(-E2M1.largest, E2M1.largest), E2M1)
        elements.masked_fill_(~torch.isfinite(amax), float("nan"))
        parts = {"elements": elements, "scale": stored.squeeze(-1), "global_scale": whole}
        return Quantized(parts, tuple(values.shape))

    return quantize


def dequantize(quantized: Quantized, group: int) -> Tensor:
    """Return element x (scale / G), `(out, in)` float32."""
    scale = scales_of(quantized).unsqueeze(-1)
    return rows_of(quantized.parts["elements"].to(torch.float32) * scale, quantized.shape)


DEQUANTIZE: Dequantize = dequantize


def scales_of(quantized: Quantized) -> Tensor:
    """Return the scale of each block with that of the matrix, s / G, (out, blocks) float32."""
    return quantized.parts["scale"].to(torch.float32) / quantized.parts["global_scale"]


def pack(quantized: Quantized) -> Quantized:
    """Return the parts with elements in one byte each, with exactly the same values."""
    elements = quantized.parts["elements"].to(E2M1.storage)
    return Quantized({**quantized.parts, "elements": elements}, quantized.shape)


def from_gguf(data: Tensor, shape: tuple[int, int]) -> Quantized:
    """Return rows of bytes of GGUF's NVFP4 (out, bytes) uint8 as parts with G = 1: the same elements under the same scales.

    A stored scale of 0x7F is 0 in GGUF and NaN in E4M3; llama.cpp writes none.
    """
    blocks = data.reshape(-1, GGUF_SCALES + GGUF_BLOCK // 2)
    scale = blocks[:, :GGUF_SCALES].contiguous().view(torch.float8_e4m3fn).reshape(shape[0], -1)
    nibbles = blocks[:, GGUF_SCALES:].reshape(-1, 1, BLOCK // 2)
    codes = torch.cat([nibbles & 15, nibbles >> 4], dim=1).reshape(shape[0], -1, BLOCK)
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    elements = table[(codes & 7).long()] * torch.where(codes > 7, -1.0, 1.0)
    return Quantized({"elements": elements, "scale": scale, "global_scale": torch.ones(1)}, shape)
