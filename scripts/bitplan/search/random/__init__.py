"""Random mixed precision."""
