"""The workflow on SLURM: the queue, the controller, and jobs that ended early."""
