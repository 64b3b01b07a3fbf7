"""The training script that a plan's job runs: one file, copied as it stands into the job's folder."""
