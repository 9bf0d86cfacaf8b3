"""Tasks: the loss over a batch of slices that a network is trained with, and the map made of its output."""
