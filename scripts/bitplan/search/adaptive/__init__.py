"""Adaptive Alpha-Hill thresholds."""
