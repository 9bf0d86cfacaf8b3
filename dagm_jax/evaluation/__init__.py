"""Evaluation: from a map of scores to a decision, and from decisions to metrics."""
