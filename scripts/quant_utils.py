"""Quantization functions and a linear layer with W4 and A4 or A8, under the name of the W4 + A4/A8 document's module."""

from bitplan.formats.mixed_linear import MixedPrecisionLinear, quantize_activations, quantize_weights

__all__ = ["MixedPrecisionLinear", "quantize_activations", "quantize_weights"]
