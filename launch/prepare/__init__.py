"""Parts of ``python -m launch.prepare_data``: the built-in images as files, the contact sheet."""
