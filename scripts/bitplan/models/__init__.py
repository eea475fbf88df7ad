"""Checkpoints, their layers, and the block-by-block walk over a model."""
