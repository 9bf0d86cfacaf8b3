"""Trained models at work: images of a folder predicted once or as they arrive, and the record of the predictions."""
