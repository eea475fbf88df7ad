"""What is known of number formats without looking into the table."""

# What a layer, or its inputs, that is not quantized has.
UNQUANTIZED = "bf16"
GGUF_TYPES = (
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"),
    *("q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "iq4_xs", "gguf_mxfp4"),
)


def weighs_columns(name: str) -> bool:
    """Return whether a format looks at the importance of columns: GGUF types, and the `_mse` rules of scales."""
    return name in GGUF_TYPES or name.endswith("_mse")
