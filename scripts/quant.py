"""`from quant import Quantizer`: how SparseGPT's grids are made, under the name of the original's module."""

from bitplan.rounding.channel_grid import Quantizer

__all__ = ["Quantizer"]
