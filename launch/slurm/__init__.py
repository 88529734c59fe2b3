"""A study as Slurm jobs: what is one array, what waits for what, the batch script, and what a job runs on its node."""
