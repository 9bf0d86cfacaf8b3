"""Pictures of predictions: figures of a run, overlays of score maps, the report page."""
