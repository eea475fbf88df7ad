"""Benchmarks that others run for their figures."""
