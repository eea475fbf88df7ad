"""Perplexity, KL and task scores of models and plans."""
