"""Checkpoints that transformers loads."""
