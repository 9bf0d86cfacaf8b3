"""Readers and writers of image sets: folders, tables and prepared sets -> a manifest. Nothing here imports jax."""
