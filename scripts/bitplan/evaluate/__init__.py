"""Perplexity, KL and tasks of models and plans."""
