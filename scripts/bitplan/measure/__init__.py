"""Measured sensitivity: KL of the model's output when one layer alone is quantized, what is fitted to it, and what agrees with it."""
