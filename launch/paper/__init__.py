"""The parts of ``python -m launch.reproduce_tables``: cells and their runs, tables, figures, pages."""
