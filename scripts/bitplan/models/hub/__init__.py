"""Models fetched from a model hub."""
