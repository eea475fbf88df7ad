"""Errors, files, resuming, progress and provenance: used by every other folder."""
