"""Perplexity and KL of plans and of GGUF files, on the same tokens."""
