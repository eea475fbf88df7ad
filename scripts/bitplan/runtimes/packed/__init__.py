"""Checkpoints whose layers are packed codes, written block by block: what the runtimes that read such folders share."""
