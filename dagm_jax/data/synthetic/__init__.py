"""Synthetic defects: drawn into good images, so that a network learns what a change is where no defect is labelled."""
