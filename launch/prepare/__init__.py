"""The parts of ``python -m launch.prepare_data``: prepared sets, built-in images, the contact sheet."""
