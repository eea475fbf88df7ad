"""Texts as windows of tokens, and the reference model's final hidden states on them."""
