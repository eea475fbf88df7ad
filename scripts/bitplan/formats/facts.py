"""Facts about number formats that need no table."""

# The format of layers and inputs that are not quantized.
UNQUANTIZED = "bf16"
GGUF_TYPES = (
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"),
    *("q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "iq4_xs", "gguf_mxfp4", "gguf_nvfp4"),
    *("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "tq1_0", "tq2_0"),
)
# ggml's own names of them.
TYPE_NAMES = {name: name.removeprefix("gguf_").upper() for name in GGUF_TYPES}
# llama.cpp's tool quantizes to these with an importance matrix only; ggml's own predicate names three of them.
NEED_IMPORTANCE = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs")


def uses_importance(name: str) -> bool:
    """Return whether a format uses the importance of columns: GGUF types and the `_mse` scale rules."""
    return name in GGUF_TYPES or name.endswith("_mse")
