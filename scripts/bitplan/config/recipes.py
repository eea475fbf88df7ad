"""llama.cpp's own recipes: the baselines that plans are compared with."""

from typing import Literal

# Ends the name of a baseline whose recipe is given the importance matrix.
IMATRIX_SUFFIX = "_imatrix"

# llama.cpp's recipes by name; a test holds them known to the runtime.
QUANTIZED_RECIPES = (
    "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs",
    "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip
WITH_IMPORTANCE = tuple(f"{recipe}{IMATRIX_SUFFIX}" for recipe in QUANTIZED_RECIPES)
Recipe = Literal[("f16", "bf16", *QUANTIZED_RECIPES, *WITH_IMPORTANCE)]
