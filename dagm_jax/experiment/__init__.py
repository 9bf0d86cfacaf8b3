"""A run: from a configuration and images to a trained, calibrated detector and its report."""
