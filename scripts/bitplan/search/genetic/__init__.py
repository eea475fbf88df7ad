"""The genetic search."""
