"""The networks, as Flax NNX modules: slices in, one map of logits out."""
