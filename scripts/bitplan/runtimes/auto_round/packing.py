"""A layer's codes in GPTQ's packing, and the values that they stand for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitplan.formats.base import Quantized
from bitplan.runtimes.auto_round.schemes import Scheme
from bitplan.runtimes.packed.bits import pack_rows, unpack_rows
from bitplan.runtimes.packed.values import times_groups, unsigned_codes


def packed(quantized: Quantized, scheme: Scheme) -> dict[str, Tensor]:
    """Return qweight (in x bits / 32, out) int32, qzeros (groups, out x bits / 32) int32 and scales (groups, out) float16.

    Zero points are stored as they are ("auto_round"), not less one as GPTQ's first version does.
    """
    codes, zeros = unsigned_codes(quantized, 2 ** (scheme.bits - 1))
    return {
        "qweight": pack_rows(codes, scheme.bits).T.contiguous(),
        "qzeros": pack_rows(zeros.T.contiguous(), scheme.bits),
        "scales": quantized.parts["scale"].to(torch.float16).T.contiguous(),
    }


def unpacked(tensors: Mapping[str, Tensor], scheme: Scheme) -> Tensor:
    """Return (code - zero) x scale, (out, in) float32."""
    codes = unpack_rows(tensors["qweight"].T.contiguous(), scheme.bits)
    zeros = unpack_rows(tensors["qzeros"], scheme.bits).T
    return times_groups((codes - zeros.repeat_interleave(scheme.group, dim=1)).to(torch.float32), tensors["scales"].T)
