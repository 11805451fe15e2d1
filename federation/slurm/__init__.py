"""Jobs for Slurm: `python -m federation.slurm submit`. The scripts beside this file are those of jobs/slurm."""
