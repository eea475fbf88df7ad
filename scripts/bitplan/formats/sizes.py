"""The sizes of number formats, known without loading torch: bits of a value, bits and values of a block."""

from collections.abc import Mapping
from dataclasses import dataclass

from bitplan.formats.facts import GGUF_TYPES
from bitplan.formats.fitting import BLOCKS


class Sized:
    """What has `element_bits`, `scale_bits`, `block`, `fixed_block`, `scope` and `matrix_bits`, as a `Format` has."""

    element_bits: float
    scale_bits: int
    block: int
    fixed_block: bool
    scope: str
    matrix_bits: int

    def group(self, group_size: int | None) -> int:
        """Return the block length in use: the plan's `group_size`, unless the format has a fixed block."""
        return self.block if self.fixed_block or group_size is None else group_size

    def bits_per_value(self, group_size: int | None = None) -> float:
        """Return bits per value in rows that are a multiple of the block, e.g. 4.25 for mxfp4; without scales for other scopes."""
        return self.element_bits + (self.scale_bits / self.group(group_size) if self.scope == "block" else 0)

    def bits_of(self, shape: tuple[int, int], group_size: int | None = None) -> float:
        """Return the exact stored size of an `(out, in)` matrix in bits; a short last block has a full scale."""
        rows, columns = shape
        scales = {"block": rows * -(-columns // self.group(group_size)), "row": rows, "tensor": 1}[self.scope]
        return rows * columns * self.element_bits + scales * self.scale_bits + self.matrix_bits


@dataclass(frozen=True)
class Size(Sized):
    """The size of a format, in the words of `Format`."""

    element_bits: float
    scale_bits: int
    block: int
    fixed_block: bool = False
    scope: str = "block"
    matrix_bits: int = 0


# Bytes of a block of a GGUF type.
BLOCK_BYTES: Mapping[str, int] = {
    **{"q2_k": 84, "q3_k": 110, "q4_k": 144, "q5_k": 176, "q6_k": 210, "iq4_xs": 136},
    **{"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34, "iq4_nl": 18, "gguf_mxfp4": 17, "gguf_nvfp4": 36},
    **{
        "iq1_s": 50,
        "iq1_m": 56,
        "iq2_xxs": 66,
        "iq2_xs": 74,
        "iq2_s": 82,
        "iq3_xxs": 98,
        "iq3_s": 110,
        "tq1_0": 54,
        "tq2_0": 66,
    },
}
_MX = {"mxfp4": 4, "mxfp6_e2m3": 6, "mxfp6_e3m2": 6, "mxfp8": 8, "mxfp8_e5m2": 8}
SIZES: Mapping[str, Size] = {
    **dict.fromkeys(("bf16", "fp16"), Size(16, 0, 1, fixed_block=True)),
    **{f"{name}{rule}": Size(bits, 8, 32) for name, bits in _MX.items() for rule in ("", "_rceil", "_mse")},
    **dict.fromkeys(("nvfp4", "nvfp4_pow2"), Size(4, 8, 16, fixed_block=True, matrix_bits=32)),
    **{f"int{bits}{scales}": Size(bits, 16, 128) for bits in range(2, 9) for scales in ("", "_bf16s")},
    **{f"int{bits}_asym{scales}": Size(bits, 16 + bits, 128) for bits in range(2, 9) for scales in ("", "_bf16s")},
    **{
        f"int{bits}_{name}": Size(bits, 16 + bits, 1, fixed_block=True, scope=scope)
        for bits in (4, 8)
        for name, scope in (("token", "row"), ("tensor", "tensor"))
    },
    **{name: Size(8 * BLOCK_BYTES[name] / BLOCKS[name], 0, BLOCKS[name], fixed_block=True) for name in GGUF_TYPES},
}
