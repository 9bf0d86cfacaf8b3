"""Exported files: a trained model as one file for other runtimes, and that file read back."""
