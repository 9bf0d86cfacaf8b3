"""Surface-defect detection in JAX/Flax: from a folder of images to a trained, calibrated inspector."""
