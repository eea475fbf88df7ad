"""Checkpoints, their layers, and the block-by-block walk through a model."""
