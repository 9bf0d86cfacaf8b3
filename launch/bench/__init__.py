"""The parts of ``python -m launch.benchmark``: what is timed, how, beside what, and how it is written down."""
