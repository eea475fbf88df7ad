"""Errors, files, resuming, progress and provenance: what every other folder uses."""
