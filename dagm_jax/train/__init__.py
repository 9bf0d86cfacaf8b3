"""Training: state, optimiser, the pure step, its compilation over devices, checkpoints, the loop."""
