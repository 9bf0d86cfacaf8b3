"""Programs around the package: each is started as ``python -m launch.NAME``."""
