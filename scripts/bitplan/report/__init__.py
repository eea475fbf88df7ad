"""Comparisons, studies, tables and figures."""
