"""What the rules compute: code versions, and the workflow on SLURM."""
