"""The workflow on SLURM: jobs of an earlier run that are still in the queue, and one line for each job that ended early."""
