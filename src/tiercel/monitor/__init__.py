"""Monitoring data: counted and journaled by the workers, read by everyone else."""
