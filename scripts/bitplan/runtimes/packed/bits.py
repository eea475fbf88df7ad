"""Codes of b bits, dense, least significant bit first along a row: the layout that MLX, GPTQ and compressed-tensors share.

32 codes of b bits fill b words of 32 bits exactly; code i begins at bit i x b of them.
"""

import torch
from torch import Tensor

CODES = WORD = 32
MASK = (1 << WORD) - 1


def _places(bits: int) -> list[tuple[int, int, int]]:
    """Return (code, word, shift) for each of 32 codes: where its lowest bit is."""
    return [(code, *divmod(code * bits, WORD)) for code in range(CODES)]


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Return unsigned codes (rows, columns) as (rows, columns x bits / 32) int32; columns are a multiple of 32."""
    blocks = codes.reshape(len(codes), -1, CODES)
    words = torch.zeros((*blocks.shape[:2], bits), dtype=torch.int64)
    for code, word, shift in _places(bits):
        value = blocks[..., code].to(torch.int64) << shift
        words[..., word] |= value & MASK
        if shift + bits > WORD:
            words[..., word + 1] |= value >> WORD
    # From 0 ... 2^32 - 1 to the int32 of the same bits.
    return (words - ((words >> WORD - 1) << WORD)).to(torch.int32).reshape(len(codes), -1)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """Return the codes (rows, columns) int32 of 32-bit words (rows, columns x bits / 32)."""
    blocks = (words.view(torch.int32).to(torch.int64) & MASK).reshape(len(words), -1, bits)
    codes = torch.empty((*blocks.shape[:2], CODES), dtype=torch.int32)
    for code, word, shift in _places(bits):
        value = blocks[..., word] >> shift
        if shift + bits > WORD:
            value = value | (blocks[..., word + 1] << WORD - shift)
        codes[..., code] = (value & (1 << bits) - 1).to(torch.int32)
    return codes.reshape(len(words), -1)
