"""Devices as a mesh, and processes that work on one run."""
