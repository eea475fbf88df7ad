"""AutoRound's checkpoint format (codes in GPTQ's packing), which transformers and vLLM load."""
