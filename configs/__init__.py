"""Shipped configurations: overrides of the defaults, nothing else."""
