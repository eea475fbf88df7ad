"""Rounding weights with error feedback on the grids of the number formats."""
