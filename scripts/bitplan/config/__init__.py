"""The settings of the workflow and of plans."""
