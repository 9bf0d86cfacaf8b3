"""Procedural look-alikes of the ten DAGM classes: image, weak mask and ellipse from four numbers, no file needed.

``drawing`` gives a class's number its texture and its defect; ``class_NN`` hold these; ``fields`` (noise), ``marks``
(where a defect lies, its strokes and its ellipse) and ``relief`` (embossed surfaces) are what they share.
"""

from dagm_jax.data.procedural.drawing import CLASSES, VERSION, Drawing, draw

__all__ = ["CLASSES", "VERSION", "Drawing", "draw"]
