"""The names of the number formats, for checking settings without importing torch."""

# The format of layers and inputs that are not quantized.
UNQUANTIZED = "bf16"
MX_ELEMENTS = ("mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8", "mxfp8_e5m2")
GGUF_TYPES = (
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"),
    *("q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "iq4_xs", "gguf_mxfp4"),
)
NAMES: tuple[str, ...] = (
    *(UNQUANTIZED, "fp16"),
    *(f"{element}{rule}" for element in MX_ELEMENTS for rule in ("", "_rceil", "_mse")),
    *(f"int{bits}{kind}" for kind in ("", "_asym") for bits in range(2, 9)),
    *(f"int{bits}_{scope}" for scope in ("token", "tensor") for bits in (4, 8)),
    *GGUF_TYPES,
)


def uses_importance(name: str) -> bool:
    """Return whether a format uses the importance of columns: GGUF types and the `_mse` scale rules."""
    return name in GGUF_TYPES or name.endswith("_mse")
