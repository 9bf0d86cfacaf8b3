"""What a network is trained for: a loss over a batch of slices, and a map from its output."""
